"""The tuner: measures candidates on a device through one session, and keeps what was measured in a profile."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tvm_coexec import schedules
from tvm_coexec.compiler.target import Target
from tvm_coexec.errors import KernelError, MeasurementError
from tvm_coexec.layers import AnyLayer, Linear, Variant
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Candidate, Point, PointTimes, samples_of
from tvm_coexec.rpc.client import DeviceFailedError, Measurement, RefusedError, SessionLostError

from .ahead import ModulesAhead
from .watch import Watch

if TYPE_CHECKING:
    from tvm_coexec.rpc.client import Session

_CANDIDATES = 2
"""Pairs of variants measured of a layer: the default, and one drawn from the search space."""

_PROMISING = 8
"""About so many variants at the head of a search space are drawn from: plans choose among the first few."""

ROUNDS = 3
"""Times that all points of a candidate are measured, one after the other."""

_HARMLESS = Linear(8, 64, 64)
"""A layer that every device computes: where it fails, too, no candidate is to blame."""

_POINT_S = 0.05
"""A point is repeated for about this long, within the bounds below."""
_REPEATS = (6, 24)
_LAUNCH_FLOPS_PER_US = 5e4
_BYTES_PER_US = 2e4


_DISTURBED, _LEAST_SPREAD = 3.0, 0.05
"""A point was disturbed where its repetitions spread so many times as far as those of the usual point, and so far."""

_MOST_REPEATED = 0.2
"""Share of all points that is measured twice at most."""


Work = tuple[Candidate, Sequence[Point]]
"""What is measured of a candidate."""


class Tuner:
    """Measures candidates through one session and stores every sample as it comes."""

    def __init__(
        self,
        session: Session,
        profile: Profile,
        target: Target,
        modules: ModulesAhead | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.session = session
        self._watch = watch
        self._spreads: list[float] = []
        self._repeated = 0
        self.profile = profile
        self.target = target
        self._modules = modules or ModulesAhead(target, profile.facts)
        session.check = profile.check_device  # a key may lead to another device at any new lease

    def measure(self, candidate: Candidate, points: Sequence[Point], *, again: bool = False) -> None:
        """Measure the points that the profile lacks, or all of them ``again``.

        A candidate that fails is remembered, and skipped from then on.
        """
        wanted = [point for point in points if again or not self.profile.has(candidate, point)]
        if not wanted or self.profile.failure(candidate) is not None:
            return
        canary_us = self._watch.canary_us() if self._watch else None
        try:
            times = self._repeat_disturbed(candidate, self.measure_now(candidate, wanted, walls=False))
        except (KernelError, RefusedError, SessionLostError) as error:
            self.profile.add_failure(candidate, str(error))
            return
        self.profile.add_samples(samples_of(candidate, times, canary_us))

    def _repeat_disturbed(self, candidate: Candidate, times: Sequence[PointTimes]) -> list[PointTimes]:
        """Measure points once more whose repetitions disagree far more than is usual here, and keep the steadier ones.

        Where a device is never quiet nothing is unusual, and only a part of all points is measured twice.
        """
        spreads = [_spread(point) for point in times]
        self._spreads += spreads
        limit = max(_DISTURBED * float(np.median(self._spreads)), _LEAST_SPREAD)
        found = [number for number, spread in enumerate(spreads) if spread > limit]
        if not found or self._repeated + len(found) > _MOST_REPEATED * len(self._spreads):
            return list(times)
        self._repeated += len(found)
        points = [Point(times[number].cpu_units, times[number].gpu_units, times[number].repeats) for number in found]
        again = dict(zip(found, self.measure_now(candidate, points, check=False, walls=False), strict=True))
        return [min((point, again.get(number, point)), key=_spread) for number, point in enumerate(times)]

    def measure_all(self, works: Iterable[Work]) -> Iterator[Work]:
        """Measure points of candidates, and yield each after it; those to come are compiled meanwhile."""
        waiting: deque[Work] = deque()
        for work in works:
            candidate, points = work
            if self._is_wanted(candidate, points):
                self.compile_ahead([candidate])
            waiting.append(work)
            if len(waiting) > self._modules.most_waiting:
                yield self._measured(waiting.popleft())
        while waiting:
            yield self._measured(waiting.popleft())

    def compile_ahead(self, candidates: Iterable[Candidate]) -> None:
        """Compile what will be measured soon meanwhile, where there are cores for it."""
        self._modules.begin(candidates)

    def _measured(self, work: Work) -> Work:
        self.measure(*work)
        return work

    def _is_wanted(self, candidate: Candidate, points: Sequence[Point]) -> bool:
        known = all(self.profile.has(candidate, point) for point in points)
        return not known and self.profile.failure(candidate) is None

    def measure_now(
        self, candidate: Candidate, points: Sequence[Point], *, check: bool = True, walls: bool = True
    ) -> list[PointTimes]:
        """Measure, whatever the profile holds, and store nothing; ``check`` the results before.

        Repetitions are spread over rounds, so that a burst of other work spoils some of a point's, not all.
        """
        a_round = [replace(point, repeats=-(-point.repeats // ROUNDS)) for point in points]
        times = self.ask(candidate, a_round * ROUNDS, check=check, walls=walls).points
        return [_joined(times[index :: len(points)]) for index in range(len(points))]

    def ask(
        self, candidate: Candidate, points: Sequence[Point], *, check: bool = True, walls: bool = True
    ) -> Measurement:
        """One call to the device; once more, in a session of its own, where the first one was lost on the way.

        What ends a session twice is the candidate's fault where the device still computes something else; a server that
        was stopped, or a machine that stood still, ends it once. A device that fails twice is nobody's fault here, and
        ends the tuning: what was measured is kept.
        """
        module = self.module(candidate)
        try:
            return self.session.measure(module, points, check=check, walls=walls)
        except (SessionLostError, DeviceFailedError):
            self.session.reconnect()
        try:
            return self.session.measure(module, points, check=check, walls=walls)
        except SessionLostError:
            self.session.reconnect()
            self._check_that_the_device_works()
            raise

    def _check_that_the_device_works(self) -> None:
        try:
            self.session.measure(self.module(self.default_candidate(_HARMLESS)), [Point(1, 1)])
        except (KernelError, MeasurementError) as error:
            raise DeviceFailedError(
                f"the device fails whatever it computes ({error}); restart its server and tune again: what was "
                "measured is kept"
            ) from None

    def module(self, candidate: Candidate) -> bytes:
        """A module file of the candidate alone."""
        return self._modules.take(candidate)

    def variants(self, layer: AnyLayer, side: str) -> list[Variant]:
        """The search space of a side, the most promising first."""
        found: list[Variant] = schedules.family(layer).variants(layer, side, self.target.hardware)
        return found

    def default_candidate(self, layer: AnyLayer) -> Candidate:
        family = schedules.family(layer)
        return Candidate(layer, *(family.default_variant(layer, side, self.target.hardware) for side in ("cpu", "gpu")))

    def candidates(self, layer: AnyLayer) -> list[Candidate]:
        """The default variants, and others drawn with a preference for the promising; the same for every run."""
        spaces = [self.variants(layer, side) for side in ("cpu", "gpu")]
        rng = np.random.default_rng(abs(hash((layer.flops, layer.weight_bytes, layer.activation_bytes))) % 2**32)
        pairs = [Candidate(layer, *(space[0] for space in spaces))]
        for _ in range(_CANDIDATES - 1):
            pairs.append(Candidate(layer, *(_draw(space, rng) for space in spaces)))
        return list(dict.fromkeys(pairs))


def _spread(point: PointTimes) -> float:
    """The usual distance of a point's repetitions from their median, of the side where it is larger."""
    sides_us = [np.array(us) for us in (point.cpu_us, point.gpu_us) if us]
    return max(float(np.median(np.abs(us / np.median(us) - 1))) for us in sides_us)


def _joined(rounds: Sequence[PointTimes]) -> PointTimes:
    """One point's times from all its rounds."""

    def times_us(name: str) -> tuple[float, ...]:
        return tuple(time_us for one in rounds for time_us in getattr(one, name))

    return replace(rounds[0], cpu_us=times_us("cpu_us"), gpu_us=times_us("gpu_us"), wall_us=times_us("wall_us"))


def _draw(space: Sequence[Variant], rng: np.random.Generator) -> Variant:
    return space[min(int(rng.exponential(min(len(space) / 4, _PROMISING))), len(space) - 1)]


def repeats_for(layer: AnyLayer) -> int:
    """Repetitions of a point: many of a short layer, few of a long one."""
    expected_us = 5 + max(layer.flops / _LAUNCH_FLOPS_PER_US, layer.activation_bytes / _BYTES_PER_US)
    low, high = _REPEATS
    return int(min(high, max(low, _POINT_S * 1e6 / expected_us)))


def training_points(layer: AnyLayer) -> list[Point]:
    """Each side alone, whole and in part, and both at work at a few splits around an even one and away from it."""
    units, repeats = layer.units, repeats_for(layer)
    rng = np.random.default_rng(layer.flops % 2**32)
    low, high = max(units // 6, 1), units - max(units // 6, 1)  # where plans are found; slivers only measure launches
    splits = {units // 2, *(int(rng.integers(low, high + 1)) for _ in range(3))} if units > 1 else set()
    parts = {units, max(units // 2, 1), int(rng.integers(low, units + 1))}
    alone = [(part, 0) for part in sorted(parts)] + [(0, part) for part in sorted(parts)]
    return [Point(c, g, repeats) for c, g in [*alone, *((split, units - split) for split in sorted(splits) if split)]]
