"""Tuning: layers are measured on a device, what was measured is kept in a profile, and predictors learn from it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import schedules
from .errors import InputError, KernelError
from .layers import AnyLayer, Linear, Variant
from .packaging import single_layer
from .planning.basetime import BaseTime
from .planning.estimates import fit_estimates
from .planning.evaluation import Evaluation, evaluate
from .planning.features import Processor
from .planning.predictors import LatencyPredictor, train
from .planning.samples import Candidate, Point, PointTimes, Sample, samples_of
from .planning.split import Overheads, Planner, plan_measured
from .planning.streaming import Streaming, streaming_layer
from .profile import Profile
from .rpc.client import RefusedError, SessionLostError
from .target import Target, target_for
from .workloads import (
    attention_training_layers,
    conv2d_training_layers,
    images_training_layers,
    linear_training_layers,
    rowwise_training_layers,
)

if TYPE_CHECKING:
    from .rpc.client import Session
    from .runtime.device import Device

FAMILIES: dict[str, Callable[[], Iterator[AnyLayer]]] = {
    "linear": linear_training_layers,
    "rowwise": rowwise_training_layers,
    "conv2d": conv2d_training_layers,
    "images": images_training_layers,
    "attention": attention_training_layers,
}
_SHARES = {"linear": 5, "rowwise": 1, "conv2d": 5, "images": 2, "attention": 1}
"""Layers of each family in a round: those that take most of a network's time get most of the tuning's."""

_CANDIDATES = 2
"""Pairs of variants measured of a layer: the default, and one drawn from the search space."""

ROUNDS = 3
"""Times that all points of a candidate are measured, one after the other."""

_POINT_S = 0.05
"""A point is repeated for about this long, within the bounds below."""
_REPEATS = (6, 24)
_LAUNCH_FLOPS_PER_US = 5e4
_BYTES_PER_US = 2e4
_OVERHEAD_LAYER = Linear(8, 64, 64, ("bias",))


class Tuner:
    """Measures candidates through one session and stores every sample as it comes."""

    def __init__(self, session: Session, profile: Profile, target: Target) -> None:
        self.session = session
        self.profile = profile
        self.target = target

    def measure(self, candidate: Candidate, points: Sequence[Point]) -> None:
        """Measure the points that the profile lacks. A candidate that fails is remembered, and skipped from then on."""
        wanted = [point for point in points if not self.profile.has(candidate, point)]
        if not wanted or self.profile.failure(candidate) is not None:
            return
        try:
            times = self.measure_now(candidate, wanted)
        except (KernelError, RefusedError, SessionLostError) as error:
            self.profile.add_failure(candidate, str(error))
            return
        self.profile.add_samples(samples_of(candidate, times))

    def measure_now(self, candidate: Candidate, points: Sequence[Point]) -> list[PointTimes]:
        """Measure, whatever the profile holds, and store nothing.

        Repetitions are spread over rounds, so that a burst of other work spoils some of a point's, not all.
        """
        a_round = [replace(point, repeats=-(-point.repeats // ROUNDS)) for point in points]
        times = self.session.measure(self.module(candidate), a_round * ROUNDS).points
        return [_joined(times[place :: len(points)]) for place in range(len(points))]

    def module(self, candidate: Candidate) -> bytes:
        """A module file of the candidate alone."""
        package = single_layer(candidate.layer, candidate.cpu, candidate.gpu, self.target, self.profile.facts)
        return package.to_bytes()

    def overheads(self) -> Overheads:
        """What synchronisation and launches add to a layer, from one so small that little else is left."""
        candidate, units = self.default_candidate(_OVERHEAD_LAYER), _OVERHEAD_LAYER.units
        half = units // 2
        both, gpu = self.measure_now(candidate, [Point(half, units - half, 100), Point(0, units, 25)])
        split_us = np.median(np.array(both.wall_us) - np.maximum(both.cpu_us, both.gpu_us))
        gpu_alone_us = np.median(gpu.wall_us) - np.median(gpu.gpu_us)
        return Overheads(split_us=max(float(split_us), 0.0), gpu_alone_us=max(float(gpu_alone_us), 0.0))

    def streaming(self) -> Streaming:
        """How fast either side reads weights from memory."""
        cache_bytes = max(self.profile.facts.get("cache_bytes", {}).values(), default=0)
        layer = streaming_layer(cache_bytes)
        candidate, units = self.default_candidate(layer), layer.units
        half = units // 2
        splits = ((half, units - half), (units, 0), (0, units))
        both, cpu, gpu = self.measure_now(candidate, [Point(own, other, 12) for own, other in splits])

        def rate(share: float, times_us: Sequence[float]) -> float:
            return share * layer.weight_bytes / float(np.median(times_us))

        alone = {"cpu": rate(1.0, cpu.cpu_us), "gpu": rate(1.0, gpu.gpu_us)}
        beside = {"cpu": rate(half / units, both.cpu_us), "gpu": rate(1 - half / units, both.gpu_us)}
        return Streaming(alone, beside, cache_bytes)

    def default_candidate(self, layer: AnyLayer) -> Candidate:
        family = schedules.family(layer)
        return Candidate(layer, *(family.default_variant(layer, side, self.target.hardware) for side in ("cpu", "gpu")))

    def candidates(self, layer: AnyLayer) -> list[Candidate]:
        """The default variants, and others drawn with a preference for the promising; the same for every run."""
        family = schedules.family(layer)
        spaces = [family.variants(layer, side, self.target.hardware) for side in ("cpu", "gpu")]
        rng = np.random.default_rng(abs(hash((layer.flops, layer.weight_bytes, layer.activation_bytes))) % 2**32)
        pairs = [Candidate(layer, *(space[0] for space in spaces))]
        for _ in range(_CANDIDATES - 1):
            pairs.append(Candidate(layer, *(_draw(space, rng) for space in spaces)))
        return list(dict.fromkeys(pairs))


def _joined(rounds: Sequence[PointTimes]) -> PointTimes:
    """One point's times from all its rounds."""

    def joined(name: str) -> tuple[float, ...]:
        return tuple(time_us for one in rounds for time_us in getattr(one, name))

    return replace(rounds[0], cpu_us=joined("cpu_us"), gpu_us=joined("gpu_us"), wall_us=joined("wall_us"))


def _draw(space: Sequence[Variant], rng: np.random.Generator) -> Variant:
    return space[min(int(rng.exponential(len(space) / 4)), len(space) - 1)]


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


@contextmanager
def open_session(
    device: str | None,
    *,
    tracker: str | None = None,
    key: str | None = None,
    cpu_cores: Sequence[int] | None = None,
    gpu_cores: Sequence[int] | None = None,
) -> Iterator[Session]:
    """A session on a device of the tracker that the user named, or on a local device; see :func:`tune`."""
    from .rpc.client import Session
    from .rpc.tracker import device_key, use_tracker

    cpu, gpu = (None if cores is None else tuple(cores) for cores in (cpu_cores, gpu_cores))
    with (
        use_tracker(tracker, device=device, cpu_cores=cpu, gpu_cores=gpu) as address,
        Session(address, key or device_key(device)) as session,
    ):
        yield session


def tune(
    out: str | os.PathLike[str],
    *,
    device: str | None = None,
    families: Iterable[str] = ("linear",),
    minutes: float = 10.0,
    layers: Iterable[AnyLayer] = (),
    tracker: str | None = None,
    key: str | None = None,
    cpu_cores: Sequence[int] | None = None,
    gpu_cores: Sequence[int] | None = None,
) -> list[Evaluation]:
    """Measure layers on a device for a while, and train the profile's predictors.

    Parameters
    ----------
    out
        The profile's directory. If it is there already, tuning goes on where it stopped.
    device
        Any unambiguous part of the name of a local device; not to be given with ``tracker``.
    families
        Of ``linear``, ``rowwise``, ``conv2d``, ``images`` and ``attention``. Layers of a family that is not tuned are
        placed by an estimate.
    minutes
        Time for measuring; training comes on top.
    layers
        Layers that must be among those measured, before any others.
    tracker, key
        ``host:port`` of an RPC tracker and the key of the device there. By default a tracker and a server for the
        local device are started on loopback.
    cpu_cores, gpu_cores
        Cores for either side of a local device.

    Returns
    -------
    The predictors' errors on layers held out of training, the CPU's first.

    Raises
    ------
    MeasurementError
        The tracker or the device cannot be reached.
    """
    chosen = _check_families(families)
    if minutes <= 0:
        raise InputError(f"minutes must be positive, got {minutes:g}")
    with open_session(device, tracker=tracker, key=key, cpu_cores=cpu_cores, gpu_cores=gpu_cores) as session:
        facts = session.facts()
        path = Path(out)
        opener = Profile.open if path.exists() and any(path.iterdir()) else Profile.create
        with opener(path, facts) as profile:
            tuner = Tuner(session, profile, target_for(facts))
            profile.describe(planning={"overheads": asdict(tuner.overheads()), "streaming": asdict(tuner.streaming())})
            first = list(dict.fromkeys(layers))
            _measure_for(tuner, _stream(chosen, first), minutes * 60, at_least=len(first) + len(chosen))
            profile.describe(families=sorted({*profile.families, *chosen}))
            return fit(profile)


def _check_families(families: Iterable[str]) -> list[str]:
    chosen = list(dict.fromkeys(families))
    for name in chosen:
        if name not in FAMILIES:
            raise InputError(f"there is no family {name!r}; choose from {', '.join(FAMILIES)}")
    if not chosen:
        raise InputError(f"no family to tune; choose from {', '.join(FAMILIES)}")
    return chosen


def _stream(families: Sequence[str], first: Iterable[AnyLayer]) -> Iterator[AnyLayer]:
    """The layers asked for, then rounds of every family's own; a round has one of each before it has more of any."""
    yield from first
    streams = {name: FAMILIES[name]() for name in families}
    while True:
        for place in range(max(_SHARES.values())):
            for name, stream in streams.items():
                if place < _SHARES[name]:
                    yield next(stream)


def _measure_for(tuner: Tuner, layers: Iterator[AnyLayer], seconds: float, at_least: int) -> None:
    """Measure until the time is over, but not before the first ``at_least`` layers are done."""
    from tqdm import tqdm

    start = time.monotonic()
    with tqdm(
        total=round(seconds), unit="s", desc="measuring", bar_format="{l_bar}{bar}| {n:.0f}/{total} s {postfix}"
    ) as bar:
        for count, layer in enumerate(layers, 1):
            for candidate in tuner.candidates(layer):
                tuner.measure(candidate, training_points(layer))
            elapsed = time.monotonic() - start
            bar.n = min(elapsed, bar.total)
            bar.set_postfix_str(f"{count} layers")
            if elapsed > seconds and count >= at_least:
                return


def processors(facts: dict[str, Any]) -> dict[str, Processor]:
    """What the features know of each side's processor."""
    caches = facts.get("cache_bytes", {})
    own, shared = caches.get("l2", 0), caches.get("l3", 0)
    workers = {"cpu": len(facts["cpu_cores"]), "gpu": facts["compute_units"]}
    return {side: Processor(count, own, shared) for side, count in workers.items()}


def fit(profile: Profile) -> list[Evaluation]:
    """Train both predictors on all samples of a profile, and store them with their error on held-out layers."""
    samples = list(profile.samples())
    evaluations = []
    for side, processor in processors(profile.facts).items():
        own = [sample for sample in samples if sample.side == side]
        evaluations.append(evaluate(own, side, processor))
        train(own, side, processor).save(profile.predictor_path(side))
    profile.describe(
        report={evaluation.side: evaluation.to_json() for evaluation in evaluations},
        planning={
            **(profile.planning or {}),
            "estimates_us": {side: dict(one.coefficients) for side, one in fit_estimates(samples).items()},
        },
    )
    return evaluations


def measure_splits(
    layers: Iterable[AnyLayer], device: Device, profile: str | os.PathLike[str] | None = None
) -> tuple[list[Sample], Overheads]:
    """Measure some splits of each layer, closer and closer to the best; returns all samples and the overheads.

    With a profile, what it holds is not measured again, and what is measured goes into it.
    """
    from tqdm import tqdm

    with ExitStack() as stack:
        session = stack.enter_context(
            open_session(device.info.name, cpu_cores=device.cpu_cores, gpu_cores=device.gpu_cores or None)
        )
        facts = session.facts()
        if profile is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tvm-coexec-"))
            store = stack.enter_context(Profile.create(Path(folder) / "profile", facts))
        else:
            store = stack.enter_context(Profile.open(profile, facts))
        tuner = Tuner(session, store, target_for(facts))
        for layer in tqdm(list(dict.fromkeys(layers)), desc="measuring", unit="layer", leave=False):
            _search_split(tuner, layer)
        return list(store.samples()), tuner.overheads()


def _search_split(tuner: Tuner, layer: AnyLayer) -> None:
    """Measure an even grid of splits, then the neighbourhood of the best, until it is known unit by unit."""
    candidate = tuner.default_candidate(layer)
    low, high = 0, layer.units
    while True:
        splits = sorted({round(float(split)) for split in np.linspace(low, high, 7)})
        tuner.measure(candidate, [Point(split, layer.units - split, repeats_for(layer)) for split in splits])
        best = plan_measured("layer", layer, tuner.profile.samples(), Overheads(0.0)).cpu_units
        if len(splits) == high - low + 1:
            return
        place = splits.index(best) if best in splits else len(splits) // 2
        low, high = splits[max(place - 1, 0)], splits[min(place + 1, len(splits) - 1)]


def planner(profile: Profile) -> Planner:
    """The planner of a tuned profile."""
    if not isinstance(profile.planning, dict) or not {"estimates_us", "streaming"} <= set(profile.planning):
        raise InputError(f"{profile.path} is not tuned to the end; go on with `tvm-coexec tune --out {profile.path}`")
    cpu, gpu = (LatencyPredictor.load(profile.predictor_path(side)) for side in ("cpu", "gpu"))
    overheads = Overheads(**profile.planning["overheads"])
    estimates = {side: BaseTime(tuple(terms.items())) for side, terms in profile.planning["estimates_us"].items()}
    streaming = Streaming(**profile.planning["streaming"])
    hardware = target_for(profile.facts).hardware
    return Planner(cpu, gpu, hardware, overheads, estimates=estimates, streaming=streaming)
