"""A place for what drivers and the compiler keep for the next run, where the usual one cannot be written."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path

import platformdirs

_PLACE = "XDG_CACHE_HOME"
"""All of them look here: PoCL and this package."""


@cache
def ensure_caches() -> None:
    """Let caches lie in a temporary folder for the time of this process, if they can be nowhere else.

    It has to be called before pyopencl is imported and before a driver is loaded: they look for the place once.
    """
    usual = Path(os.environ.get(_PLACE) or os.path.expanduser("~/.cache"))  # noqa: PTH111 - never raises
    if _is_writable(usual):
        return
    warnings.warn(
        f"what is compiled cannot be kept in {usual}, so that every start takes longer; let {_PLACE} name a "
        "folder that can be written",
        stacklevel=2,
    )
    folder = tempfile.mkdtemp(prefix="tvm-coexec-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[_PLACE] = folder


def program_cache() -> Path:
    """Where built OpenCL programs are kept from one process to the next."""
    ensure_caches()
    folder = Path(platformdirs.user_cache_path("tvm-coexec")) / "programs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
