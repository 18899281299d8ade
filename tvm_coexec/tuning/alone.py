"""What two processes must not use at once: two tunings of a device measure each other, and of a profile one is lost."""

from __future__ import annotations

import fcntl
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import platformdirs

from tvm_coexec.cache import digest_of
from tvm_coexec.errors import MeasurementError

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def alone_with_profile(path: Path) -> Iterator[None]:
    """Hold a profile; a :class:`MeasurementError` names the process that holds it."""
    with _alone(path / "tuning.lock", f"the profile {path}"):
        yield


@contextmanager
def alone_with_device(name: str) -> Iterator[None]:
    """Hold a device of this machine; a :class:`MeasurementError` names the process that holds it.

    The lock is the machine's: in the folder of temporary files, which its users share, and in the user's cache, which
    containers may share. There it bears the machine's name of the day, since other machines may share the cache, too.
    """
    held = digest_of(f"{name} {_this_boot()}")
    with ExitStack() as stack:
        for folder in (Path(tempfile.gettempdir()), Path(platformdirs.user_cache_path("tvm-coexec"))):
            stack.enter_context(_alone(folder / "tvm-coexec-held" / held, f"the device {name}"))
        yield


def _this_boot() -> str:
    """Name this boot by what all containers of a machine see, and no other machine."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return platform.node()


@contextmanager
def _alone(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock that ends with the process, however it ends; where none can be kept nothing is held."""
    descriptor = _opened(lock)
    if descriptor is None:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
            raise MeasurementError(
                f"{what} is being tuned or measured by {holder}; wait until that has ended, or end it"
            ) from None
        told = f"process {os.getpid()} since {datetime.now():%Y-%m-%d %H:%M} on {platform.node()}\n"
        with suppress(OSError):  # the file is another user's, or the disk is full: the lock holds all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, told.encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _opened(lock: Path) -> int | None:
    """A handle of the file, made where it is missing, for all users; one that another made can be locked, too."""
    with suppress(OSError):
        if not lock.parent.is_dir():
            lock.parent.mkdir(parents=True)
            lock.parent.chmod(0o1777)
    for flags in (os.O_RDWR, os.O_RDONLY, os.O_RDWR | os.O_CREAT):  # in turn: the last is refused for another's file
        with suppress(OSError):
            return os.open(lock, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    return None
