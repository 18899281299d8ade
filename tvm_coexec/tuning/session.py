"""Open a session on a local device or on one behind a tracker, or on all that a tracker has of one kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tvm_coexec.errors import InputError, MeasurementError
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.profile.kind import Kind, kind_of

if TYPE_CHECKING:
    from tvm_coexec.rpc.client import Session

Tell = Callable[[str], None]

_SUMMARY_TIMEOUT_S = 20.0
_FAR_SESSION_S = 600.0
"""Some drivers take minutes for the first launch of a layer's kernels; a call may take half of a session."""


def check_session(choice: DeviceChoice, tracker: str | None, key: str | None) -> None:
    """Refuse what :func:`open_session` cannot open, as far as that is told before anything heavy is loaded for it."""
    from tvm_coexec.rpc.lease import TrackerConnection
    from tvm_coexec.rpc.tracker import check_beside_tracker, parse_tracker

    if tracker is None:
        if key is not None:
            raise InputError(f"the key {key!r} names a device at a tracker; name that too, with --tracker")
        return
    check_beside_tracker(choice)
    if key is None:
        raise InputError(f"name the device by --key; `tvm-coexec devices --tracker {tracker}` lists those there are")
    TrackerConnection(parse_tracker(tracker), _SUMMARY_TIMEOUT_S).close()


@contextmanager
def open_session(
    choice: DeviceChoice, tracker: str | None = None, key: str | None = None, *, session_s: float = 0.0
) -> Iterator[Session]:
    """A session on the local device that was chosen, or on that of the tracker that is named; see :func:`tune`.

    Parameters
    ----------
    session_s
        How long it lasts at least.
    """
    from tvm_coexec.rpc.client import SESSION_TIMEOUT_S, Session
    from tvm_coexec.rpc.tracker import device_key, use_tracker

    check_session(choice, tracker, key)
    session_s = max(session_s, SESSION_TIMEOUT_S if tracker is None else _FAR_SESSION_S)
    with (
        use_tracker(tracker, choice) as address,
        Session(address, key or device_key(choice.name), session_timeout_s=session_s) as session,
    ):
        yield session


@contextmanager
def open_fleet(
    choice: DeviceChoice, tracker: str | None, key: str | None, known: Mapping[str, Any] | None, tell: Tell
) -> Iterator[list[Session]]:
    """Sessions on all devices of a tracker's key that are of one kind, or the one on the local device.

    The first one is open; of the others those whose devices nobody uses. The kind is the profile's, else that of most
    devices; one of another kind is named and left alone.

    Parameters
    ----------
    known
        Facts of the profile's device, if there is a profile already.
    tell
        Called with a line for the user.
    """
    with open_session(choice, tracker, key) as first, ExitStack() as stack:
        if tracker is None or key is None:
            yield [first]
            return
        others, free = _others(tracker, key)
        for session in others:
            stack.callback(session.close)
        with ThreadPoolExecutor(1 + free) as pool:
            asked = [first, *others[:free]]
            facts = list(pool.map(_facts, asked))
        told = {session: some for session, some in zip(asked, facts, strict=True) if some is not None}
        kind = _common_kind(list(told.values()), known)
        alike = [session for session, some in told.items() if kind_of(some) == kind]
        for session, some in told.items():
            if session not in alike:
                tell(
                    f"the device at {session.address} is of another kind, {kind_of(some)}, and takes no "
                    f"part; the others with key {key!r} are {kind}"
                )
                session.close()
        yield [*alike, *(session for session in others if session not in told)]


def _others(tracker: str, key: str) -> tuple[list[Session], int]:
    """Sessions for the devices beside one that is in use, none open yet, and how many of these devices are free."""
    from tvm_coexec.rpc.client import Session
    from tvm_coexec.rpc.lease import TrackerConnection
    from tvm_coexec.rpc.tracker import parse_tracker

    address = parse_tracker(tracker)
    with TrackerConnection(address, _SUMMARY_TIMEOUT_S) as connection:
        count, free = connection.servers(key), connection.free().get(key, 0)
    sessions = [Session(address, key, session_timeout_s=_FAR_SESSION_S) for _ in range(count - 1)]
    return sessions, min(free, len(sessions))


def _facts(session: Session) -> dict[str, Any] | None:
    """What the device says of itself, or nothing if it cannot be had now."""
    try:
        return session.facts()
    except MeasurementError:
        session.close()
        return None


def _common_kind(facts: Sequence[Mapping[str, Any]], known: Mapping[str, Any] | None) -> Kind:
    """The kind of most devices, of those that are the profile's but for the driver if there are any."""
    kinds = [kind_of(some) for some in facts]
    wanted = None if known is None else kind_of({**known, "driver_version": None})
    fitting = [one for one in kinds if replace(one, driver=None) == wanted]
    return Counter(fitting or kinds).most_common(1)[0][0]
