"""Measures candidates on one device, through one session."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tvm_coexec.errors import KernelError, MeasurementError
from tvm_coexec.planning.division import Overheads
from tvm_coexec.profile.records import Candidate, Point, PointTimes, Sample, samples_of
from tvm_coexec.rpc.outcomes import DeviceFailedError, Measurement, RefusedError, SessionLostError, WrongError

from .watch import Watch, Watched

if TYPE_CHECKING:
    from tvm_coexec.rpc.client import Session

_Result = TypeVar("_Result")

ROUNDS = 3
"""Times that all points of a candidate are measured, one after the other."""

_CALL_US = 30e6
"""What a call to the device may take by what is expected: its session must not end before it."""

_EXPECTED_WARM_UPS, _PROGRAMS = 2, 2
"""How often ``time_step`` runs a layer before it is timed, and how many programs it times: one for the GPU's times, and
one for the CPU's. They say how long a call is expected to last."""

_DISTURBED, _LEAST_SPREAD = 3.0, 0.05
"""A point was disturbed where its repetitions spread so many times as far as those of the usual point, and so far."""

_MOST_REPEATED = 0.2
"""Share of all points, and of all candidates with a canary before and after, that is measured twice at most."""

_LEAST_OF_WALL = 0.25
"""Share of its wall that a GPU's kernel takes at least, whatever a layer was calibrated to take beyond it."""

_SLOW_LAUNCHES, _LOOKS, _LOOK_REPEATS, _PAUSE_S = (1.1, 2.0), 8, 3, 0.1
"""Walls of so many times the interval of launches, between these, may be of launches that were slow for a while: they
are looked at again, a few times at most, with pauses. On the host of an H200, which others use too, launches follow
each other every 5.5 us or every 8.3, for a tenth of a second to many seconds at a time."""

_LEAST_CHANGE, _MOST_AGAIN = 0.1, 2
"""A device has changed its speed where the logarithm differs by so much; so often a candidate is measured again."""


class _SpoiltError(DeviceFailedError):
    """A candidate was refused, and the device computes nothing since, as after a kernel that hangs."""

    def __init__(self, error: DeviceFailedError, refusal: RefusedError) -> None:
        super().__init__(str(error))
        self.refusal = refusal


class Measurer:
    """A device that is asked one thing after the other.

    Parameters
    ----------
    module
        Gives the module file of a candidate.
    harmless
        What every device computes: where it fails, too, no other candidate is to blame.
    overheads
        Gives those of a GPU whose kernels alone are timed by what each adds to a chain; None where events are enough.
    """

    def __init__(
        self,
        session: Session,
        module: Callable[[Candidate], bytes],
        harmless: Candidate,
        watch: Watch | None = None,
        overheads: Callable[[], Overheads | None] = lambda: None,
    ) -> None:
        self.session = session
        self._module, self._harmless, self._watch = module, harmless, watch
        self._overheads = overheads
        self._interruptions: list[tuple[str, str]] = []
        self._spreads: list[float] = []
        self._changes: list[float] = []
        self._repeated = self._again = 0

    def take_interruptions(self) -> list[tuple[str, str]]:
        """Why something had to be asked a second time since this was called last, with the device's address."""
        taken, self._interruptions = self._interruptions, []
        return taken

    def samples(self, candidate: Candidate, points: Sequence[Point]) -> list[Sample]:
        """Measure points, those that were disturbed once more, and all where the device changed its speed meanwhile.

        Raises
        ------
        KernelError, RefusedError, SessionLostError
            The candidate is at fault.
        MeasurementError
            The device is, or cannot be had.
        """
        if self._watch is None:
            return samples_of(candidate, self._measure_steadily(candidate, points))
        measure = partial(self._measure_steadily, candidate, points)
        found = self._watch.around(measure)
        limit = self._most_change(found)
        for _ in range(_MOST_AGAIN):
            most = _MOST_AGAIN + _MOST_REPEATED * len(self._changes)
            if found.change is None or found.change <= limit or not found.may_be_repeated or self._again >= most:
                break
            self._again += 1
            try:
                again = self._watch.around(measure, surely=True)
            except WrongError:
                raise
            except (KernelError, MeasurementError):  # what was measured is kept, and the next candidate meets it
                break
            found = _steadier(found, again)
        return samples_of(candidate, found.measured, found.canary_us)

    def _most_change(self, found: Watched[Any]) -> float:
        """How far the device's speeds before and after may differ, by what was usual until now; takes in another."""
        usual = float(np.median(self._changes)) if self._changes else 0.0
        if found.change is not None and np.isfinite(found.change):
            self._changes.append(found.change)
        return max(_DISTURBED * usual, _LEAST_CHANGE)

    def _measure_steadily(self, candidate: Candidate, points: Sequence[Point]) -> list[PointTimes]:
        return self._repeat_disturbed(candidate, self._measure_halves(candidate, points))

    def _measure_halves(self, candidate: Candidate, points: Sequence[Point], *, check: bool = True) -> list[PointTimes]:
        """Measure, with the GPU's kernels alone timed by walls where events tell too little of short ones.

        On an NVIDIA H200 the events of kernels that take 5 to 6 us in a chain tell 7.5 to 9, and not in their order.
        """
        overheads = self._overheads()
        times = self.measure_now(candidate, points, check=check, walls=overheads is not None)
        if overheads is None:
            return times
        if overheads.gpu_interval_us:
            times = self._with_quick_launches(candidate, times, overheads.gpu_interval_us)
        return [one if one.cpu_units else _by_walls(one, overheads.gpu_alone_us) for one in times]

    def _with_quick_launches(
        self, candidate: Candidate, times: Sequence[PointTimes], interval_us: float
    ) -> list[PointTimes]:
        """Look again at the GPU alone where launches may have been slow, and keep the shortest walls.

        Where launches stay slow, a layer that takes as long as they do is taken to do so when they are quick, too.
        """
        found = list(times)
        for look in range(_LOOKS):
            slow = _maybe_slow(found, interval_us)
            if not slow:
                return found
            if look:
                time.sleep(_PAUSE_S)
            points = [Point(0, found[number].gpu_units, _LOOK_REPEATS) for number in slow]
            for number, again in zip(slow, self.measure_now(candidate, points, check=False), strict=True):
                found[number] = min(found[number], again, key=_wall_us)
        return self._at_quick_launches(found, _maybe_slow(found, interval_us), interval_us)

    def _at_quick_launches(self, times: list[PointTimes], slow: Sequence[int], interval_us: float) -> list[PointTimes]:
        """Replace the walls of slow ones by what they would be at the interval that launches are known to reach."""
        now_us = self._launches_us() if slow else np.inf
        factor = min(1.0, interval_us / now_us)
        for number in slow:
            one = times[number]
            if _wall_us(one) <= _SLOW_LAUNCHES[0] * now_us:
                times[number] = replace(one, wall_us=tuple(wall_us * factor for wall_us in one.wall_us))
        return times

    def _launches_us(self) -> float:
        """The interval of launches now: what a layer on the GPU alone takes that is smaller than any other."""
        points = [Point(0, self._harmless.layer.units, _LOOK_REPEATS)]
        return _wall_us(self._measure(self._harmless_module, points, check=False, walls=True).points[0])

    @cached_property
    def _harmless_module(self) -> bytes:
        return self._module(self._harmless)

    def measure_now(
        self, candidate: Candidate, points: Sequence[Point], *, check: bool = True, walls: bool = True
    ) -> list[PointTimes]:
        """Measure; ``check`` the results before.

        Repetitions are spread over rounds, so that a burst of other work spoils some of a point's, not all; few of them
        are of a layer that takes longer than a burst.
        """
        rounds = ROUNDS if min(point.repeats for point in points) > ROUNDS else 1
        a_round = [replace(point, repeats=-(-point.repeats // rounds)) for point in points]
        times = self.ask(candidate, a_round * rounds, check=check, walls=walls).points
        return [_joined(times[index :: len(points)]) for index in range(len(points))]

    def ask(
        self, candidate: Candidate, points: Sequence[Point], *, check: bool = True, walls: bool = True
    ) -> Measurement:
        """Ask the device, in as many calls as its session allows."""
        measured = [
            self._ask_once(candidate, portion, check=check, walls=walls)
            for portion in self._portions(candidate, points)
        ]
        errors = [one.max_rel_error for one in measured if one.max_rel_error is not None]
        return Measurement(tuple(time for one in measured for time in one.points), max(errors, default=None))

    def _portions(self, candidate: Candidate, points: Sequence[Point]) -> list[list[Point]]:
        """Divide points among calls; only a device that is slow needs more than one."""
        layer = candidate.layer
        unit_us = (self._watch.expected_us(layer) if self._watch else 0.0) / layer.units
        portions, left_us = [list[Point]()], _CALL_US
        for point in points:
            runs = _PROGRAMS * (_EXPECTED_WARM_UPS + point.repeats)
            expected_us = runs * max(point.cpu_units, point.gpu_units) * unit_us
            if expected_us > left_us and portions[-1]:
                portions.append([])
                left_us = _CALL_US
            portions[-1].append(point)
            left_us -= expected_us
        return portions

    def _ask_once(self, candidate: Candidate, points: Sequence[Point], *, check: bool, walls: bool) -> Measurement:
        """Call the device; once more, in a session of its own, where the first call gave no result.

        What ends a session twice, or is refused twice, or twice leaves the device of no use for its session, or gives
        a wrong result, is the candidate's fault where the device still computes something else; a process that was
        stopped or killed, a driver's compiler among them, or a machine that stood still, ends it once. A device that
        fails twice by itself is nobody's fault here.
        """
        module = self._module(candidate)
        try:
            return self._measure(module, points, check=check, walls=walls)
        except WrongError:  # a kernel that is right at times may be planned no more than one that never is
            raise
        except (SessionLostError, DeviceFailedError, RefusedError) as error:
            self._interruptions.append((self.session.address, str(error)))
            self.session.reconnect()
        try:
            return self._measure(module, points, check=check, walls=walls)
        except SessionLostError:
            self.session.reconnect()
            self.check_that_the_device_works()
            raise
        except _SpoiltError as error:
            self.session.reconnect()
            self.check_that_the_device_works()
            raise error.refusal from None

    def _measure(self, module: bytes, points: Sequence[Point], *, check: bool, walls: bool) -> Measurement:
        try:
            return self.session.measure(module, points, check=check, walls=walls)
        except RefusedError as refusal:
            try:
                self.check_that_the_device_works()
            except DeviceFailedError as error:
                raise _SpoiltError(error, refusal) from None
            raise

    def check_that_the_device_works(self) -> None:
        """Raise a :class:`DeviceFailedError` where it computes nothing, or nothing right."""
        try:
            self.session.measure(self._harmless_module, [Point(1, 1)])
        except (KernelError, MeasurementError) as error:
            raise DeviceFailedError(
                f"the device fails whatever it computes ({error}); restart its server and tune again: what was "
                "measured is kept"
            ) from None

    def _repeat_disturbed(self, candidate: Candidate, times: Sequence[PointTimes]) -> list[PointTimes]:
        """Measure points once more whose repetitions disagree far more than is usual here, and keep the steadier ones.

        Where a device is never quiet nothing is unusual, and only a part of all points is measured twice; none whose
        repetitions are few, since those are long.
        """
        spreads = [_spread(point) for point in times]
        self._spreads += spreads
        limit = max(_DISTURBED * float(np.median(self._spreads)), _LEAST_SPREAD)
        found = [number for number, spread in enumerate(spreads) if spread > limit and times[number].repeats > ROUNDS]
        if not found or self._repeated + len(found) > _MOST_REPEATED * len(self._spreads):
            return list(times)
        self._repeated += len(found)
        points = [Point(times[number].cpu_units, times[number].gpu_units, times[number].repeats) for number in found]
        again = dict(zip(found, self._measure_halves(candidate, points, check=False), strict=True))
        return [min((point, again.get(number, point)), key=_spread) for number, point in enumerate(times)]


def _steadier(found: Watched[_Result], again: Watched[_Result]) -> Watched[_Result]:
    """The one that was measured at a speed that changed less; a change that is not known is only less than a move."""
    if found.change is None or again.change is None:
        return again if found.change == np.inf else found
    return again if again.change < found.change else found


def _by_walls(alone: PointTimes, beyond_us: float) -> PointTimes:
    """Take for the kernel's time what the layer adds to a chain, less what a layer takes beyond its kernel."""
    kernel_us = tuple(max(wall_us - beyond_us, _LEAST_OF_WALL * wall_us) for wall_us in alone.wall_us)
    return replace(alone, gpu_us=kernel_us)


def _maybe_slow(times: Sequence[PointTimes], interval_us: float) -> list[int]:
    """List the points of the GPU alone whose walls may be those of slow launches; a longer kernel may be among them."""
    low_us, high_us = (factor * interval_us for factor in _SLOW_LAUNCHES)
    return [number for number, one in enumerate(times) if not one.cpu_units and low_us < _wall_us(one) < high_us]


def _wall_us(point: PointTimes) -> float:
    return float(np.median(point.wall_us))


def _spread(point: PointTimes) -> float:
    """The usual distance of a point's repetitions from their median, of the side where it is larger."""
    sides_us = [np.array(us) for us in (point.cpu_us, point.gpu_us) if us]
    return max(float(np.median(np.abs(us / np.median(us) - 1))) for us in sides_us)


def _joined(rounds: Sequence[PointTimes]) -> PointTimes:
    """Join one point's times of all its rounds."""

    def times_us(name: str) -> tuple[float, ...]:
        return tuple(time_us for one in rounds for time_us in getattr(one, name))

    return replace(rounds[0], cpu_us=times_us("cpu_us"), gpu_us=times_us("gpu_us"), wall_us=times_us("wall_us"))
