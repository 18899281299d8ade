"""The tuner: has candidates measured on one device or on several, and keeps what was measured in a profile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_coexec import schedules
from tvm_coexec.compiler.target import Target
from tvm_coexec.layers import AnyLayer, Linear, Variant, by_threads
from tvm_coexec.planning.division import Overheads
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Candidate, Point, PointTimes

from .ahead import ModulesAhead
from .crew import Crew, Trial
from .measurer import Measurer
from .watch import Watch

if TYPE_CHECKING:
    from tvm_coexec.rpc.client import Session
    from tvm_coexec.rpc.outcomes import Measurement

_CANDIDATES = 2
"""Pairs of variants measured of a layer: the default, and one drawn from the search space."""

_PROMISING = 8
"""About so many variants at the head of a search space are drawn from: plans choose among the first few."""

_HARMLESS = Linear(8, 64, 64)
"""A layer that every device computes: where it fails, too, no candidate is to blame."""

_POINT_S = 0.05
"""A point is repeated for about this long, within the bounds below."""
_REPEATS = (6, 24)
_FEW_REPEATS = 3
"""Repetitions of a point of which one takes longer than that: disturbances are short beside it."""

_LAUNCH_FLOPS_PER_US, _BYTES_PER_US = 5e4, 2e4
"""What a server's core computes and reads in a microsecond: a layer's time is guessed by it before it is measured."""

Work = tuple[Candidate, Sequence[Point], bool]
"""What is measured of a candidate, and whether it is measured again where the profile holds it."""


class Tuner:
    """Measures candidates and stores every sample as it comes.

    Parameters
    ----------
    session
        The device that is asked for what is measured now.
    watch
        Tells how fast that device is.
    others
        Sessions on other devices of the same kind, and what watches these, which measure at the same time.
    patience_s, tell
        See :class:`Crew`.
    """

    def __init__(
        self,
        session: Session,
        profile: Profile,
        target: Target,
        modules: ModulesAhead | None = None,
        watch: Watch | None = None,
        *,
        others: Iterable[tuple[Session, Watch | None]] = (),
        patience_s: float = 0.0,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.session, self.profile, self.target = session, profile, target
        self.threads = thread_counts(profile.facts)
        self._modules = modules or ModulesAhead(target, profile.facts)
        self._works: dict[Candidate, Work] = {}
        self._watch = watch
        harmless = self.default_candidate(_HARMLESS)
        measurers, pairs = [], [(session, watch), *others]
        self._others = [own for own, _ in pairs[1:]]
        for own, its_watch in pairs:
            own.check = profile.check_device  # a key may lead to another device at any new lease
            measurers.append(Measurer(own, self.module, harmless, its_watch, self._gpu_overheads))
        self._first = measurers[0]
        self.crew = Crew(measurers, patience_s, tell)

    def close(self) -> None:
        """Give the devices back, but for the first one."""
        self.crew.close()
        for session in self._others:
            session.close()

    def measure(self, candidate: Candidate, points: Sequence[Point]) -> None:
        """Measure the points that the profile lacks.

        A candidate that fails is remembered, and skipped from then on.
        """
        deque(self.measure_all([(candidate, points, False)]), maxlen=0)

    def measure_all(self, works: Iterable[Work], is_over: Callable[[], bool] = lambda: False) -> Iterator[Work]:
        """Measure points of candidates, and yield each after it; those to come are compiled meanwhile.

        Parameters
        ----------
        is_over
            Asked before each work: whether to begin with no other.
        """
        waiting: deque[Work] = deque()
        coming = iter(works)
        while not is_over():
            work = next(coming, None)
            if work is not None:
                if self._wanted(work):
                    self.compile_ahead([work[0]])
                waiting.append(work)
            elif not waiting:
                break
            if work is None or len(waiting) > self._modules.most_waiting:
                yield from self._begin(waiting.popleft())
        while self.crew.candidates:
            yield from self._finished()

    def repeats(self, layer: AnyLayer) -> int:
        """Say how often a point of the layer is repeated, on a device as fast as the first one."""
        return repeats_for(layer, self._slowness)

    def points(self, layer: AnyLayer) -> list[Point]:
        """The points at which a layer is learnt, on a device as fast as the first one."""
        return training_points(layer, self._slowness)

    def _gpu_overheads(self) -> Overheads | None:
        """See :class:`Measurer`: what calibration has found; a CPU that plays the GPU times its kernels well itself."""
        stored = (self.profile.planning or {}).get("overheads", {})
        if self.target.hardware.opencl_type != "gpu" or not stored.get("gpu_alone_us"):
            return None
        return Overheads(**stored)

    @property
    def _slowness(self) -> float:
        return 1.0 if self._watch is None else self._watch.slowness

    def compile_ahead(self, candidates: Iterable[Candidate]) -> None:
        """Compile what will be measured soon meanwhile, where there are cores for it."""
        self._modules.begin(candidates)

    def _begin(self, work: Work) -> Iterator[Work]:
        """Hand a work out; yields what is finished until a device is free for the next one."""
        while not self.crew.has_free or work[0] in self.crew.candidates:
            yield from self._finished()
        wanted = self._wanted(work)
        if not wanted:
            yield work
            return
        self._works[work[0]] = work
        self.crew.give(Trial(work[0], wanted))
        while not self.crew.has_free:
            yield from self._finished()

    def _finished(self) -> Iterator[Work]:
        """Wait until something has happened, and store it."""
        for outcome in self.crew.take():
            candidate = outcome.trial.candidate
            if outcome.failure is None:
                self.profile.add_samples(outcome.samples, outcome.device)
            else:
                self.profile.add_failure(candidate, outcome.failure)
            yield self._works.pop(candidate)

    def _wanted(self, work: Work) -> list[Point]:
        """The points that are to be measured: those that the profile lacks, or all of them again."""
        candidate, points, again = work
        if self.profile.failure(candidate) is not None:
            return []
        return [point for point in points if again or not self.profile.has(candidate, point)]

    def measure_now(
        self, candidate: Candidate, points: Sequence[Point], *, check: bool = True, walls: bool = True
    ) -> list[PointTimes]:
        """Measure on the first device, whatever the profile holds, and store nothing; see :class:`Measurer`."""
        return self._first.measure_now(candidate, points, check=check, walls=walls)

    def ask(
        self, candidate: Candidate, points: Sequence[Point], *, check: bool = True, walls: bool = True
    ) -> Measurement:
        """Call the first device; see :meth:`Measurer.ask`."""
        return self._first.ask(candidate, points, check=check, walls=walls)

    def module(self, candidate: Candidate) -> bytes:
        """Give a module file of the candidate alone."""
        return self._modules.take(candidate)

    def variants(self, layer: AnyLayer, side: str) -> list[Variant]:
        """List the search space of a side, the most promising first."""
        found: list[Variant] = schedules.family(layer).variants(layer, side, self.target.hardware)
        return found

    def ways(self, layer: AnyLayer, side: str) -> list[Variant]:
        """List the search space of a side by every number of threads, all cores first."""
        return by_threads(self.variants(layer, side), self.threads if side == "cpu" else (0,))

    def default_candidate(self, layer: AnyLayer) -> Candidate:
        family = schedules.family(layer)
        return Candidate(layer, *(family.default_variant(layer, side, self.target.hardware) for side in ("cpu", "gpu")))

    def candidates(self, layer: AnyLayer) -> list[Candidate]:
        """The default variants, and others drawn with a preference for the promising; the same for every run.

        The drawn ones are computed by any number of threads: a count costs no candidate of its own.
        """
        spaces = [self.variants(layer, side) for side in ("cpu", "gpu")]
        rng = np.random.default_rng(abs(hash((layer.flops, layer.weight_bytes, layer.activation_bytes))) % 2**32)
        pairs = [Candidate(layer, *(space[0] for space in spaces))]
        for _ in range(_CANDIDATES - 1):
            cpu, gpu = (_draw(space, rng) for space in spaces)
            if len(self.threads) > 1:
                cpu = replace(cpu, threads=int(rng.choice(self.threads)))
            pairs.append(Candidate(layer, cpu, gpu))
        return list(dict.fromkeys(pairs))


def thread_counts(facts: Mapping[str, Any]) -> tuple[int, ...]:
    """Numbers of the CPU's threads that are worth measuring: one on each core, which is 0, and then ever fewer.

    Fewer are powers of two, and the cores before the first one of another kind: a phone's fastest ones alone.
    """
    cores = facts["cpu_cores"]
    kinds = {core: number for number, one in enumerate(facts.get("clusters", ())) for core in one["cores"]}
    changes = {end for end in range(1, len(cores)) if kinds.get(cores[end - 1]) != kinds.get(cores[end])}
    powers = {1 << power for power in range(len(cores).bit_length()) if 1 << power < len(cores)}
    return (0, *sorted(powers | changes, reverse=True))


def _draw(space: Sequence[Variant], rng: np.random.Generator) -> Variant:
    return space[min(int(rng.exponential(min(len(space) / 4, _PROMISING))), len(space) - 1)]


def repeats_for(layer: AnyLayer, slowness: float = 1.0) -> int:
    """Choose the repetitions of a point: many of a short layer, few of a long one.

    Parameters
    ----------
    slowness
        How many times as long as a server's core the device takes.
    """
    expected_us = 5 + slowness * max(layer.flops / _LAUNCH_FLOPS_PER_US, layer.activation_bytes / _BYTES_PER_US)
    low, high = _REPEATS
    if slowness > 1 and expected_us > _POINT_S * 1e6:
        low = _FEW_REPEATS
    return int(min(high, max(low, _POINT_S * 1e6 / expected_us)))


def training_points(layer: AnyLayer, slowness: float = 1.0) -> list[Point]:
    """List each side alone, whole and in part, and both at work at a few splits around an even one and away from it."""
    units, repeats = layer.units, repeats_for(layer, slowness)
    rng = np.random.default_rng(layer.flops % 2**32)
    low, high = max(units // 6, 1), units - max(units // 6, 1)  # where plans are found; slivers only measure launches
    splits = {units // 2, *(int(rng.integers(low, high + 1)) for _ in range(3))} if units > 1 else set()
    parts = {units, max(units // 2, 1), int(rng.integers(low, units + 1))}
    alone = [(part, 0) for part in sorted(parts)] + [(0, part) for part in sorted(parts)]
    return [Point(c, g, repeats) for c, g in [*alone, *((split, units - split) for split in sorted(splits) if split)]]
