"""Open a session on a local device or on one behind a tracker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tvm_coexec.errors import InputError
from tvm_coexec.runtime.device import DeviceChoice

if TYPE_CHECKING:
    from tvm_coexec.rpc.client import Session

_FAR_SESSION_S = 240.0
"""Some drivers take a minute for a kernel's first launch; a call may take half of a session."""


@contextmanager
def open_session(choice: DeviceChoice, tracker: str | None = None, key: str | None = None) -> Iterator[Session]:
    """A session on the local device that was chosen, or on that of the tracker that is named; see :func:`tune`."""
    from tvm_coexec.rpc.client import SESSION_TIMEOUT_S, Session
    from tvm_coexec.rpc.tracker import check_beside_tracker, device_key, use_tracker

    if tracker is not None:
        check_beside_tracker(choice)
        if key is None:
            raise InputError(
                f"name the device by --key; `tvm-coexec devices --tracker {tracker}` lists those there are"
            )
    if tracker is None and key is not None:
        raise InputError(f"the key {key!r} names a device at a tracker; name that too, with --tracker")
    session_s = SESSION_TIMEOUT_S if tracker is None else _FAR_SESSION_S
    with (
        use_tracker(tracker, choice) as address,
        Session(address, key or device_key(choice.name), session_timeout_s=session_s) as session,
    ):
        yield session
