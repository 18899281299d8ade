"""Asks a tracker which devices it knows, and for one of them, never waiting longer than agreed.

TVM's own tracker client tries for a minute to connect and waits without a bound for a device.
"""

from __future__ import annotations

import importlib
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tvm_coexec.errors import MeasurementError

_CONNECT_TIMEOUT_S = 5.0
"""A tracker that takes longer to be reached is taken to be gone."""


@dataclass(frozen=True)
class TrackerAddress:
    """Where a tracker listens.

    Parameters
    ----------
    has_ended
        Whether it never will again, if somebody can tell.
    """

    host: str
    port: int
    has_ended: Callable[[], bool] = field(default=lambda: False, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Lease:
    """The right to connect to one server, once."""

    host: str
    port: int
    match_key: str

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


class TrackerConnection:
    """A connection to a tracker, as a context manager.

    Parameters
    ----------
    address
        The tracker.
    timeout_s
        Bound on everything that is done with the connection, all together; that TVM is loaded for it does not count.

    Raises
    ------
    MeasurementError
        The tracker is out of reach, or is none; also from the methods.
    """

    def __init__(self, address: TrackerAddress, timeout_s: float) -> None:
        self._address = address
        self._deadline = time.monotonic() + timeout_s
        try:
            self._socket = socket.create_connection(
                (address.host, address.port), timeout=min(timeout_s, _CONNECT_TIMEOUT_S)
            )
        except OSError as error:
            raise self._out_of_reach(error) from None
        try:
            self._deadline += _load_protocol_s()
            self._greet()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> TrackerConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Break the connection."""
        self._socket.close()

    def servers(self, key: str) -> int:
        """How many servers of a key are registered, free or not."""
        return sum(info.get("key") == f"server:{key}" for info in self._summary()["server_info"])

    def keys(self) -> list[str]:
        """Keys of the servers that are registered."""
        return sorted({str(info.get("key", "")).removeprefix("server:") for info in self._summary()["server_info"]})

    def registered(self) -> list[tuple[str, str]]:
        """List key and address of each server, free or not."""
        return sorted(
            (str(info["key"]).removeprefix("server:"), "{}:{}".format(*info["addr"]))
            for info in self._summary()["server_info"]
            if info.get("addr")
        )

    def free(self) -> dict[str, int]:
        """How many servers of each key nobody uses."""
        return {str(key): int(queue["free"]) for key, queue in self._summary()["queue_info"].items()}

    def request(self, key: str, priority: int) -> Lease | None:
        """Wait for a free server of a key; None if the time is over first."""
        from tvm.rpc.base import TrackerCode

        try:
            answer = self._ask([TrackerCode.REQUEST, key, "", priority])
        except TimeoutError:
            return None
        host, port, match_key = answer[1]
        return Lease(host, port, match_key)

    def _summary(self) -> dict[str, Any]:
        from tvm.rpc.base import TrackerCode

        try:
            return dict(self._ask([TrackerCode.SUMMARY])[1])
        except TimeoutError as error:
            raise self._out_of_reach(error) from None

    def _greet(self) -> None:
        from tvm.rpc.base import RPC_TRACKER_MAGIC, recvall

        magic = struct.pack("<i", RPC_TRACKER_MAGIC)
        try:
            self._socket.sendall(magic)
            answer = recvall(self._socket, len(magic))
        except OSError as error:
            raise self._out_of_reach(error) from None
        if answer != magic:
            raise MeasurementError(f"what listens at {self._address} is no TVM RPC tracker; check the address")

    def _ask(self, question: list[Any]) -> list[Any]:
        from tvm.rpc.base import TrackerCode, recvjson, sendjson

        self._socket.settimeout(max(0.001, self._deadline - time.monotonic()))
        try:
            sendjson(self._socket, question)
            answer = recvjson(self._socket)
        except TimeoutError:
            raise
        except OSError as error:
            raise self._out_of_reach(error) from None
        if answer[0] != TrackerCode.SUCCESS:
            raise MeasurementError(f"the tracker at {self._address} refused a request; restart it")
        return list(answer)

    def _out_of_reach(self, error: OSError) -> MeasurementError:
        return MeasurementError(
            f"the tracker at {self._address} is out of reach ({error}); start it, or correct --tracker"
        )


def _load_protocol_s() -> float:
    """Load TVM, unless it is loaded, and return what that took: seconds, and on a busy machine many of them."""
    began = time.monotonic()
    importlib.import_module("tvm.rpc.base")
    return time.monotonic() - began


def request_lease(address: TrackerAddress, key: str, *, priority: int, timeout_s: float) -> Lease:
    """Wait for a free server of a key.

    Raises
    ------
    MeasurementError
        The tracker is out of reach, or no server became free in time.
    """
    with TrackerConnection(address, timeout_s) as tracker:
        lease = tracker.request(key, priority)
    if lease is not None:
        return lease
    with TrackerConnection(address, _CONNECT_TIMEOUT_S) as tracker:
        count, known = tracker.servers(key), tracker.keys()
    if count:
        raise MeasurementError(
            f"none of the {count} device(s) with key {key!r} at {address} was free within {timeout_s:g} s;"
            " wait for the other users, or add a device"
        )
    raise MeasurementError(
        f"no device with key {key!r} is registered at {address}, which has {', '.join(known) or 'none at all'};"
        f" start one with `python -m tvm.exec.rpc_server --tracker {address} --key {key}`"
    )
