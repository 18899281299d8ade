"""Unpacks root file systems: packages of a release of Debian, and Python packages, for this CPU or for another.

None of the packages' scripts is run, which takes seconds where an installation under emulation takes minutes, and needs
neither a kernel nor an emulator for the other CPU.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs

from .commands import run


def home() -> Path:
    """The folder in the user's cache that holds what is made once."""
    return platformdirs.user_cache_path("tvm-coexec") / "phones"


def once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder, unless it is there; it takes its place when it is whole."""
    if folder.exists():
        return
    print(f"making {folder}", flush=True)
    begun = folder.with_name(f"{folder.name}.{os.getpid()}")
    begun.mkdir(parents=True)
    try:
        fill(begun)
        begun.rename(folder)
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def unpack(release: str, architecture: str, packages: str, folder: Path, *, with_backports: bool = False) -> None:
    """Unpack packages of a release of Debian and all that they depend on."""
    options = ["--mode=root", "--variant=extract", f"--architectures={architecture}", "--quiet"]
    options += ["--aptopt=APT::Install-Recommends false", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
    sources = []
    if with_backports:
        options.append(f'--aptopt=APT::Default-Release "{release}-backports"')
        sources = [f"deb {_archive()} {name} main" for name in (release, f"{release}-backports")]
    command = ["mmdebstrap", *options, f"--include={packages}", release, str(folder), *sources]
    run(command, f"unpack {packages} of Debian {release}")


def _archive() -> str:
    """The archive of packages that this machine uses."""
    listed = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"], "find Debian's archive"
    )
    return listed.split()[0]


def add_python_packages(folder: Path, python: str, machine: str, packages: Sequence[str]) -> None:
    """Put wheels for a version of Python and a kind of CPU into a root file system."""
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in range(17, 37)]
    target = folder / "usr" / "local" / "lib" / f"python{python}" / "dist-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    where = [f"--python-version={python}", f"--target={target}", *platforms, f"--platform=manylinux2014_{machine}"]
    run([*pip, *where, *packages], f"download {', '.join(packages)}")
