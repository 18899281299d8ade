"""What two processes must not use at once: two tunings of a device measure each other, and of a profile one is lost."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import platformdirs

from tvm_coexec.compiler.cache import digest_of
from tvm_coexec.errors import MeasurementError


@contextmanager
def alone_with_profile(path: Path) -> Iterator[None]:
    """Hold a profile; a :class:`MeasurementError` names the process that holds it."""
    with _alone(path / "tuning.lock", f"the profile {path}"):
        yield


@contextmanager
def alone_with_device(name: str) -> Iterator[None]:
    """Hold a device of this machine; a :class:`MeasurementError` names the process that holds it."""
    with _alone(Path(platformdirs.user_cache_path("tvm-coexec")) / "held" / digest_of(name), f"the device {name}"):
        yield


@contextmanager
def _alone(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock that ends with the process, however it ends; where none can be kept nothing is held."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
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
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} since {datetime.now():%Y-%m-%d %H:%M}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
