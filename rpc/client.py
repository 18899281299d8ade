"""Measures on a device that a tracker lends, every wait bounded."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from tvm_coexec.errors import FileFormatError, KernelError, MeasurementError, last_line
from tvm_coexec.profile.records import NetworkTimes, Point, PointTimes

from .connection import Connection, connect_to, why_it_broke_off
from .far_module import FarModule
from .lease import TrackerAddress, TrackerConnection, request_lease
from .measuring import DeviceFaultError, WrongResultError
from .outcomes import DeviceFailedError, Measurement, RefusedError, SessionLostError, WrongError
from .remote import FACTS, MEASURE, RUN, RUN_TRIALS
from .stock import StockDevice

SESSION_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 20.0
"""How long a device is lent, and waited for: a layer's measurement takes seconds, and its session has to outlast it."""

_RETURN_TIMEOUT_S = 120.0
"""How long a device that was there is waited for: its server, or its tracker, may be started anew, or stand still."""

_HELD_S = 2.0
"""How long a device that is refused is held while another one of its key is asked for: a free one is lent at once."""

_RETRY_S = 0.5
_GRACE_S = 5.0
"""What the server is given to report that a session's time is over, before the client gives up on the server."""

_CLOCKS_DIFFER_S = 0.5
"""A connection that its server closes no earlier before a session's end is closed for that."""

_RUN_MODULE = "run.module"

_Result = TypeVar("_Result")


class Session:
    """A device for a while, as a context manager.

    The device is leased for ``session_timeout_s`` at a time. A call that finds less than half of that left takes a new
    lease first, so that every call may take half of ``session_timeout_s``, and other clients get their turn. Sessions
    share nothing: several, in threads of their own, may use devices of one key.

    Parameters
    ----------
    tracker, key
        Who lends, and what.
    priority
        Higher ones are served first.
    session_timeout_s
        After this time the server ends the session, a hung kernel with it; at the latest 5 s later a call returns.
    request_timeout_s
        How long to wait for a free device at first; a device that was lent before is waited for longer.

    Raises
    ------
    MeasurementError
        From every method: :class:`RefusedError` where the request failed and the device is well,
        :class:`DeviceFailedError` where it is not, :class:`SessionLostError` where the session ended, itself where no
        device can be had.
    """

    def __init__(
        self,
        tracker: TrackerAddress,
        key: str,
        *,
        priority: int = 1,
        session_timeout_s: float = SESSION_TIMEOUT_S,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self._tracker, self._key, self._priority = tracker, key, priority
        self._session_timeout_s, self._request_timeout_s = session_timeout_s, request_timeout_s
        self._connection: Connection | None = None
        self.return_timeout_s = _RETURN_TIMEOUT_S
        """How long a device that was there is waited for."""
        self.address = ""
        """``host:port`` of the device's server, as the tracker names it; empty until a device is leased."""
        self._stock: StockDevice | None = None
        self._sent: dict[str, bytes] = {}
        self._was_lent = False
        self._ends = 0.0
        self.check: Callable[[Mapping[str, Any]], None] | None = None
        """Called with the facts of every device that is leased from now on; it refuses another than is wanted."""

    def __enter__(self) -> Session:
        """Lease a device that answers: the tracker lends the key's next one where the first is not there."""
        deadline = time.monotonic() + self._request_timeout_s
        unanswered: MeasurementError | None = None
        while not self.is_open:
            self.address = ""
            try:
                self.reconnect()
            except MeasurementError as error:
                if self.address:
                    unanswered = unanswered or error
                if not self.address or time.monotonic() + _RETRY_S > deadline:
                    raise (unanswered or error) from None
                time.sleep(_RETRY_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether a device is leased."""
        return self._connection is not None

    def close(self) -> None:
        """Give the device back: now, or when the call in progress returns."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.shut_down()

    def reconnect(self) -> None:
        """Give the device back and take a new lease, of this device or of another with the same key."""
        self._connect()

    def facts(self) -> dict[str, Any]:
        """Everything that a measurement on the device depends on."""
        return dict(self._call(self._renew(), FACTS, None))

    def measure(
        self,
        module: str | os.PathLike[str] | bytes,
        points: Sequence[Point],
        *,
        step: int = 0,
        check: bool = True,
        walls: bool = True,
        seed: int = 0,
        name: str = "measured.module",
    ) -> Measurement:
        """Time one layer of a module on the device.

        Parameters
        ----------
        module
            A module file, or its content.
        points
            What each side computes, and how often.
        step
            Index of the layer.
        check
            Compare the result at each point against float64 before anything is timed. A result that is wrong by more
            than the variant's bound (:func:`tvm_coexec.schedules.conv2d.error_bound`, of most 1e-5) is an error, and
            nothing is timed.
        walls
            Whether walls of the GPU alone are wanted, which are not what its half takes.
        seed
            Seed of the random operands of the check.
        name
            The module's file there, which stays loaded until another one is sent by its name.
        """
        connection = self._renew()
        request = {
            "module": self._upload(connection, module, name),
            "step": step,
            "points": [asdict(point) for point in points],
            "check": check,
            "walls": walls,
            "seed": seed,
        }
        response = self._call(connection, MEASURE, request)
        return Measurement(tuple(_point_times(point) for point in response["points"]), response["max_rel_error"])

    def time_runs(
        self, module: str | os.PathLike[str] | bytes, splits: Sequence[Mapping[str, int]], *, repeats: int
    ) -> list[list[float]]:
        """Time whole runs of a module on the device, in microseconds.

        Parameters
        ----------
        module
            A module file, or its content.
        splits
            Ways to divide the module: the CPU's units of each layer, by its name. Each gets a list of times.
        repeats
            Length of these lists.
        """
        connection = self._renew()
        request = {
            "module": self._upload(connection, module),
            "splits": [dict(one) for one in splits],
            "repeats": repeats,
        }
        return [list(times_us) for times_us in self._call(connection, RUN, request)["latency_us"]]

    def run_trials(
        self, modules: Sequence[bytes], canary: bytes | None, *, rounds: int, repeats: int, timelines: int
    ) -> list[NetworkTimes]:
        """Time whole runs of modules in turn, and the halves of their layers as they run in the network.

        Parameters
        ----------
        modules
            Contents of module files.
        canary
            Likewise, of the one that tells whether a bench device is as fast as at its best: if not, turns are put
            off or repeated, for a minute in all. None: turns are taken as they come.
        rounds
            How often every module has its turn.
        repeats, timelines
            Runs in a turn, and runs in a turn of which the halves are timed.
        """
        connection = self._renew()
        request = {
            "modules": [
                self._upload(connection, module, f"trial-{index}.module") for index, module in enumerate(modules)
            ],
            "canary": None if canary is None else self._upload(connection, canary, "canary.module"),
            "rounds": rounds,
            "repeats": repeats,
            "timelines": timelines,
        }
        return [NetworkTimes.from_json(answer) for answer in self._call(connection, RUN_TRIALS, request)]

    def open_module(self, content: bytes) -> FarModule:
        """A module that the C runtime has opened on the device, for as long as the session lasts."""
        connection = self._renew()
        stock = self._c_runtime()
        return stock.load(self._upload(connection, content, _RUN_MODULE))

    def read_file(self, path: str) -> str:
        """What a file of the device holds; nothing where it cannot be read."""
        return self._c_runtime().read_file(path)

    def _c_runtime(self) -> StockDevice:
        if self._stock is None:
            raise MeasurementError(
                f"the server of {self._key!r} is ours, which measures alone; run the module on that machine, or start"
                f" TVM's own there: python -m tvm.exec.rpc_server --tracker {self._tracker} --key {self._key}"
            )
        return self._stock

    def for_longer(self, session_timeout_s: float) -> Session:
        """A session of its own on a device of the same key, whose lease lasts for longer; this one gives its back."""
        self.close()
        longer = Session(
            self._tracker,
            self._key,
            priority=self._priority,
            session_timeout_s=session_timeout_s,
            request_timeout_s=self._request_timeout_s,
        )
        longer.check, longer._was_lent = self.check, self._was_lent
        return longer

    def _connect(self) -> Connection:
        """Lease a device that the check does not refuse.

        One that is refused is held meanwhile, so that the tracker lends another of the key, if one is free.
        """
        self.close()
        refused: list[Connection] = []
        refusal: FileFormatError | None = None
        try:
            while True:
                try:
                    connection = self._connect_to_one(self._patience_s if refusal is None else _HELD_S)
                except MeasurementError as error:
                    raise refusal or error from None
                try:
                    if self.check is not None:
                        self.check(self._call(connection, FACTS, None))
                except FileFormatError as error:
                    refused.append(connection)
                    self._connection, refusal = None, error
                    with TrackerConnection(self._tracker, self._request_timeout_s) as tracker:
                        if tracker.servers(self._key) <= len(refused):
                            raise
                except MeasurementError:
                    self.close()  # nobody may use what was not checked
                    raise
                else:
                    return connection
        finally:
            for one in refused:
                one.shut_down()

    @property
    def _patience_s(self) -> float:
        """How long to wait for a device: longer where one was lent before, which may be on its way back."""
        return max(self._request_timeout_s, self.return_timeout_s if self._was_lent else 0.0)

    def _connect_to_one(self, patience_s: float) -> Connection:
        connection = self._connection = self._lease_and_connect(patience_s)
        self._sent, self._was_lent = {}, True
        self._ends = time.monotonic() + self._session_timeout_s
        is_ours = self._wait_for(connection.has(FACTS))
        self._stock = None if is_ours else StockDevice(connection, self._wait_for)
        return connection

    def _lease_and_connect(self, patience_s: float) -> Connection:
        """Get the device: at once where it is asked for the first time, later on as soon as it is back."""
        import tvm.rpc  # noqa: F401 - which takes seconds, and a lease does not wait for that

        deadline = time.monotonic() + patience_s
        while True:
            timeout_s = round(max(deadline - time.monotonic(), 0.1), 1)
            try:
                lease = request_lease(self._tracker, self._key, priority=self._priority, timeout_s=timeout_s)
                self.address = lease.address
                return connect_to(lease, self._session_timeout_s, max(1.0, deadline - time.monotonic()))
            except MeasurementError:
                is_in_vain = self._tracker.has_ended() or time.monotonic() + _RETRY_S > deadline
                if not self._was_lent or is_in_vain:
                    raise
            time.sleep(_RETRY_S)

    def _renew(self) -> Connection:
        connection = self._connection
        if connection is None or self._ends - time.monotonic() < self._session_timeout_s / 2:
            connection = self._connect()
        return connection

    def _upload(
        self, connection: Connection, module: str | os.PathLike[str] | bytes, name: str = "measured.module"
    ) -> str:
        """Send a module file, unless it is there already: its constants have a long way, too. Its name there."""
        content = module if isinstance(module, bytes) else Path(module).read_bytes()
        if self._sent.get(name) != content:
            self._sent.pop(name, None)
            if self._stock is None:
                self._wait_for(connection.upload(content, name))
            else:
                self._stock.put(content, name)
            self._sent[name] = content
        return name

    def _call(self, connection: Connection, function: str, request: Any) -> Any:
        if self._stock is not None:
            return self._call_stock(self._stock, function, request)
        response = json.loads(self._wait_for(connection.call(function, json.dumps(request))))
        if "error" in response:
            kind = DeviceFailedError if response.get("of_device") else RefusedError
            raise (WrongError if response.get("is_wrong") else kind)(
                f"the device {self._key!r} reports: {response['error']}"
            )
        return response["result"]

    def _call_stock(self, stock: StockDevice, function: str, request: Any) -> Any:
        """What a server of ours would have answered."""
        functions = {FACTS: stock.facts, MEASURE: stock.measure, RUN: stock.run, RUN_TRIALS: stock.run_trials}
        try:
            return functions[function](request)
        except DeviceFaultError as error:
            raise DeviceFailedError(f"the device {self._key!r} reports: {last_line(error)}") from None
        except KernelError as error:
            kind = WrongError if isinstance(error, WrongResultError) else RefusedError
            raise kind(f"the device {self._key!r} reports: {last_line(error)}") from None

    def _wait_for(self, exchange: futures.Future[_Result]) -> _Result:
        from tvm.error import RPCSessionTimeoutError

        try:
            return exchange.result(self._ends - time.monotonic() + _GRACE_S)
        except RPCSessionTimeoutError:
            self.close()
            raise self._time_is_over() from None
        except futures.TimeoutError:
            self.close()
            raise SessionLostError(
                f"the device {self._key!r} has been silent for {_GRACE_S:g} s after its session ended; check that its"
                " machine runs and can be reached"
            ) from None
        except RuntimeError as error:
            self.close()
            if time.monotonic() > self._ends - _CLOCKS_DIFFER_S:
                raise self._time_is_over() from None
            raise SessionLostError(f"the session on the device {self._key!r} {why_it_broke_off(error)}") from None

    def _time_is_over(self) -> SessionLostError:
        return SessionLostError(
            f"the device {self._key!r} did not finish before its session of {self._session_timeout_s:g} s ended;"
            " the kernel hangs, or the session is too short for what is measured"
        )


def _point_times(fields: dict[str, Any]) -> PointTimes:
    times = {name: tuple(fields[name]) for name in ("cpu_us", "gpu_us", "wall_us")}
    return PointTimes(fields["cpu_units"], fields["gpu_units"], **times)
