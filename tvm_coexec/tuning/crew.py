"""Devices of one kind that measure at once: a trial goes to one that is free, and to another where that one is lost."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from threading import Event

from tvm_coexec.errors import CoexecError, FileFormatError, KernelError, MeasurementError
from tvm_coexec.profile.records import Candidate, Point, Sample
from tvm_coexec.rpc.connection import in_thread
from tvm_coexec.rpc.outcomes import RefusedError, SessionLostError

from .measurer import Measurer

PATIENCE_S = 120.0
"""How long a tracker's devices are waited for where none is left: one of them may be started anew."""

_USUAL_TRIALS = 8
"""The latest ones, by which is told what a trial takes."""

_RETRY_S = (1.0, 30.0)
"""A device that is away is asked for after the first time, and after ever longer ones up to the second."""


@dataclass(frozen=True)
class Trial:
    """What is measured of a candidate in one go."""

    candidate: Candidate
    points: Sequence[Point]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: with samples, or with a reason that is the candidate's fault.

    Parameters
    ----------
    device
        Names the device that measured it, where there are several.
    """

    trial: Trial
    samples: Sequence[Sample] = ()
    failure: str | None = None
    device: str = ""


@dataclass
class Record:
    """What a device did."""

    measured: int = 0
    failures: list[str] = field(default_factory=list)
    """Why candidates failed, each time."""
    losses: list[str] = field(default_factory=list)
    """Why it did not answer, each time: another device, or it itself, was asked again."""

    def __str__(self) -> str:
        failed = f" ({_counted(self.failures)})" if self.failures else ""
        lost = f", interrupted and tried again: {_counted(self.losses)}" if self.losses else ""
        return f"{self.measured} measured, {len(self.failures)} failed{failed}{lost}"


def _counted(reasons: Iterable[str]) -> str:
    """List reasons, each once, with how often it was given."""
    return "; ".join(f"{reason}{f' ({n} times)' if n > 1 else ''}" for reason, n in Counter(reasons).items())


class Crew:
    """Hands trials out, and takes in what became of them.

    A device that fails is asked for again until it computes; its trial goes to the next one that is free.

    Parameters
    ----------
    measurers
        One for each device.
    patience_s
        How long to wait for the first of them to come back where none is left; without any, a device that is lost ends
        it all.
    tell
        Called with a line for the user.
    """

    def __init__(
        self, measurers: Sequence[Measurer], patience_s: float = 0.0, tell: Callable[[str], None] = lambda line: None
    ) -> None:
        self._patience_s, self._tell = patience_s, tell
        self._size = len(measurers)
        self._free = [one for one in measurers if one.session.is_open]
        self._busy: dict[Future[list[Sample]], tuple[Measurer, Trial | None, float]] = {}
        """Each device that is not free, its trial, or None where it is away, and since when."""
        self._took_s: deque[float] = deque(maxlen=_USUAL_TRIALS)
        self._waiting: deque[Trial] = deque()
        self._last_error: CoexecError = MeasurementError(f"no device answers within {patience_s:g} s; start one")
        self._is_over = Event()
        self.begun = 0
        """Trials that were given."""
        self.records: dict[str, Record] = {}
        """Devices by their addresses."""
        for one in measurers:
            if one not in self._free:
                self._send_away(one)

    @property
    def has_free(self) -> bool:
        """Whether a trial that is given would begin at once."""
        return len(self._free) > len(self._waiting)

    @property
    def candidates(self) -> set[Candidate]:
        """What is being measured."""
        return {trial.candidate for trial in (*self._waiting, *self._running)}

    @property
    def _running(self) -> list[Trial]:
        return [trial for _, trial, _ in self._busy.values() if trial is not None]

    @property
    def usual_s(self) -> float:
        """What the latest trials took, in the mean; 0 before there were any."""
        return sum(self._took_s) / len(self._took_s) if self._took_s else 0.0

    def __str__(self) -> str:
        failed = sum(len(one.failures) for one in self.records.values())
        done = failed + sum(one.measured for one in self.records.values())
        return f"{done} trials, {failed} failed, {len(self._free) + len(self._running)} of {self._size} devices"

    def summary(self) -> list[str]:
        """A line for each device that did something."""
        return [f"the device at {address}: {record}" for address, record in self.records.items()]

    def close(self) -> None:
        """Ask for no device any more."""
        self._is_over.set()

    def give(self, trial: Trial) -> None:
        """Have a trial measured as soon as a device is free."""
        self.begun += 1
        self._waiting.append(trial)
        self._hand_out()

    def take(self) -> list[Outcome]:
        """Wait until something has happened; how trials ended, if any did.

        Raises
        ------
        CoexecError
            No device is left, or a fault that is none of a device's or a candidate's.
        """
        timeout_s = None if self._running else self._patience_s
        done, _ = futures.wait(self._busy, timeout_s, futures.FIRST_COMPLETED)
        if not done:
            raise self._last_error
        outcomes = [self._ended(future) for future in done]
        self._hand_out()
        return [one for one in outcomes if one is not None]

    def _hand_out(self) -> None:
        while self._waiting and self._free:
            measurer, trial = self._free.pop(0), self._waiting.popleft()
            begun = in_thread(partial(measurer.samples, trial.candidate, trial.points))
            self._busy[begun] = (measurer, trial, time.monotonic())

    def _ended(self, future: Future[list[Sample]]) -> Outcome | None:
        measurer, trial, begun_s = self._busy.pop(future)
        if trial is None:
            future.result()
            self._free.append(measurer)
            return None
        for address, reason in measurer.take_interruptions():
            self.records.setdefault(address, Record()).losses.append(reason)
        record = self.records.setdefault(measurer.session.address, Record())
        try:
            samples = future.result()
        except (KernelError, RefusedError, SessionLostError) as error:
            record.failures.append(str(error))
            self._free.append(measurer)
            return Outcome(trial, failure=str(error))
        except (MeasurementError, FileFormatError) as error:
            if not self._patience_s:
                self._free.append(measurer)
                raise
            self._waiting.appendleft(trial)
            self._last_error = error
            record.losses.append(str(error))
            self._tell(f"a device takes no part for now: {error}")
            self._send_away(measurer)
            return None
        record.measured += 1
        self._took_s.append(time.monotonic() - begun_s)
        self._free.append(measurer)
        return Outcome(trial, samples, device=measurer.session.address if self._size > 1 else "")

    def _send_away(self, measurer: Measurer) -> None:
        self._busy[in_thread(partial(_bring_back, measurer, self._is_over))] = (measurer, None, time.monotonic())


def _bring_back(measurer: Measurer, is_over: Event) -> list[Sample]:
    """Ask for a device until one computes, or until it is over; one of another kind is left alone. Measures nothing."""
    pause_s, longest_s = _RETRY_S
    while not is_over.is_set():
        try:
            measurer.session.reconnect()
            measurer.check_that_the_device_works()
            break
        except (MeasurementError, FileFormatError):
            measurer.session.close()
            is_over.wait(pause_s)
            pause_s = min(2 * pause_s, longest_s)
    return []
