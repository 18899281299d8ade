"""Open a session on a local device or on one behind a tracker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tvm_coexec.errors import InputError
from tvm_coexec.runtime.device import DeviceChoice

if TYPE_CHECKING:
    from tvm_coexec.rpc.client import Session


@contextmanager
def open_session(choice: DeviceChoice, tracker: str | None = None, key: str | None = None) -> Iterator[Session]:
    """A session on the local device that was chosen, or on that of the tracker that is named; see :func:`tune`."""
    from tvm_coexec.rpc.client import Session
    from tvm_coexec.rpc.tracker import device_key, use_tracker

    if tracker is not None and (choice.cpu_cores or choice.gpu_cores):
        raise InputError(
            "the cores of a device at a tracker are chosen where its server is started; leave out --cpu-cores and "
            "--gpu-cores, or --tracker"
        )
    if tracker is None and key is not None:
        raise InputError(f"the key {key!r} names a device at a tracker; name that too, with --tracker")
    with use_tracker(tracker, choice) as address, Session(address, key or device_key(choice.name)) as session:
        yield session
