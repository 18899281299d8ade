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

from tvm_coexec.errors import DeviceError

_PLACES = {"XDG_CACHE_HOME": "~/.cache", "POCL_CACHE_DIR": None}
"""Variables that name a folder, and that folder where one is not set: PoCL and this package look at the first."""

_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")

_ROOM_BYTES = 32 << 20
"""What the kernels of a large network take; PoCL ends the process where it cannot write them."""


@cache
def ensure_caches() -> None:
    """Let caches lie in a temporary folder for the time of this process, if the usual one has no room for them.

    It has to be called before pyopencl is imported and before a driver is loaded: they look for the place once.
    """
    for variable, otherwise in _PLACES.items():
        usual = os.environ.get(variable) or (otherwise and os.path.expanduser(otherwise))  # noqa: PTH111 - never raises
        problem = usual and _problem_of(Path(usual))
        if problem:
            os.environ[variable] = folder = _temporary_folder()
            warnings.warn(
                f"what is compiled cannot be kept in {usual} ({problem}) but in {folder}, for now, so that every start "
                f"takes longer; let {variable} name a folder that can be written and has {_ROOM_BYTES >> 20} MiB left",
                stacklevel=2,
            )


def _problem_of(folder: Path) -> str | None:
    """Why a folder cannot be used; None if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, _ROOM_BYTES)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _temporary_folder() -> str:
    """A folder with room, which is deleted at the end of the process."""
    places = [place for place in (os.environ.get("TMPDIR"), *_TEMPORARY) if place and Path(place).is_dir()]
    for place in places:
        if _problem_of(Path(place)) is None:
            folder = tempfile.mkdtemp(prefix="tvm-coexec-cache-", dir=place)
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            return folder
    raise DeviceError(
        f"no folder has {_ROOM_BYTES >> 20} MiB left for what drivers compile ({', '.join(places)} neither); delete "
        f"something, or let TMPDIR name a folder that has"
    )


def program_cache() -> Path:
    """Where built OpenCL programs are kept from one process to the next."""
    ensure_caches()
    folder = Path(platformdirs.user_cache_path("tvm-coexec")) / "programs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
