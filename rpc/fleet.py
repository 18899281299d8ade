"""Which devices a tracker has, and what each of the free ones is."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tvm_coexec.errors import MeasurementError

from .client import REQUEST_TIMEOUT_S, Session
from .lease import TrackerAddress, TrackerConnection

_SUMMARY_TIMEOUT_S = 20.0
"""A tracker answers at once, unless its machine is busy or gone."""


@dataclass(frozen=True)
class FleetDevice:
    """A server that is registered with a tracker.

    Parameters
    ----------
    is_free
        Whether it could be had when it was asked for; of others nothing more is known.
    facts
        Everything that a measurement on it depends on, if it told.
    problem
        Why it did not tell.
    """

    key: str
    address: str
    is_free: bool
    facts: Mapping[str, Any] | None = None
    problem: str = ""


def fleet(tracker: TrackerAddress) -> list[FleetDevice]:
    """List all devices of a tracker, ordered by key and address.

    Those that are free are borrowed, all of a key at once, since the tracker chooses which one it lends.

    Raises
    ------
    MeasurementError
        The tracker is out of reach.
    """
    with TrackerConnection(tracker, _SUMMARY_TIMEOUT_S) as connection:
        registered, free = connection.registered(), connection.free()
    keys = [key for key, count in free.items() for _ in range(count)]
    asked: dict[tuple[str, str], FleetDevice] = {}
    with ExitStack() as borrowed, ThreadPoolExecutor(max_workers=max(len(keys), 1)) as pool:
        sessions = [Session(tracker, key, request_timeout_s=REQUEST_TIMEOUT_S) for key in keys]
        for session in sessions:
            borrowed.callback(session.close)
        for one in pool.map(_asked, keys, sessions):
            asked[one.key, one.address] = one
    found = [asked.pop((key, address), FleetDevice(key, address, is_free=False)) for key, address in registered]
    return sorted([*found, *asked.values()], key=lambda one: (one.key, one.address))


def _asked(key: str, session: Session) -> FleetDevice:
    """Borrow a device for as long as the others are asked, and ask it what it is."""
    try:
        facts = session.facts()
    except MeasurementError as error:
        return FleetDevice(key, session.address or "unknown", is_free=bool(session.address), problem=str(error))
    return FleetDevice(key, session.address, is_free=True, facts=facts)
