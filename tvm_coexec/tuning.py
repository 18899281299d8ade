"""Tuning: layers are measured on a device, what was measured is kept in a profile, and predictors learn from it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .calibration import measure_overheads, measure_traffic
from .errors import InputError, KernelError, MeasurementError
from .frontends import to_graph
from .graph import Graph
from .guided import first_candidates, search_variants
from .layers import AnyLayer, ways_to_divide
from .planning.basetime import BaseTime
from .planning.disturbance import Disturbance
from .planning.estimates import fit_estimates
from .planning.evaluation import Evaluation, evaluate
from .planning.features import Processor
from .planning.measured import plan_measured
from .planning.predictors import LatencyPredictor, train, undisturbed
from .planning.samples import Point, Sample
from .planning.split import Overheads, Planner
from .planning.traffic import Traffic, usable_cache_bytes
from .profile import Profile
from .rehearsing import MOST_RUNS, SESSION_S, Rehearser
from .runtime.device import DeviceChoice
from .samplestore import damaged
from .target import target_for
from .tuner import Tuner, repeats_for, training_points
from .workloads import (
    attention_training_layers,
    conv2d_training_layers,
    images_training_layers,
    layers_of,
    linear_training_layers,
    rowwise_training_layers,
)

if TYPE_CHECKING:
    from .frontends import Model
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


@contextmanager
def open_session(choice: DeviceChoice, tracker: str | None = None, key: str | None = None) -> Iterator[Session]:
    """A session on the local device that was chosen, or on that of the tracker that is named; see :func:`tune`."""
    from .rpc.client import Session
    from .rpc.tracker import device_key, use_tracker

    if tracker is not None and (choice.cpu_cores or choice.gpu_cores):
        raise InputError(
            "the cores of a device at a tracker are chosen where its server is started; leave out --cpu-cores and "
            "--gpu-cores, or --tracker"
        )
    if tracker is None and key is not None:
        raise InputError(f"the key {key!r} names a device at a tracker; name that too, with --tracker")
    with use_tracker(tracker, choice) as address, Session(address, key or device_key(choice.name)) as session:
        yield session


def tune(
    out: str | os.PathLike[str],
    *,
    device: str | None = None,
    families: Iterable[str] = ("linear",),
    minutes: float = 10.0,
    layers: Iterable[AnyLayer] = (),
    models: Iterable[Model] = (),
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
        Any unambiguous part of the name of a local device. With a ``tracker``: what the device's server was started
        for, of which its key is made if none is given.
    families
        Of ``linear``, ``rowwise``, ``conv2d``, ``images`` and ``attention``. Layers of a family that is not tuned are
        placed by an estimate.
    minutes
        Time for measuring layers; training, and running the models, come on top.
    layers
        Layers to measure before any others, with ever more of the variants that promise to be the best.
    models
        Models whose layers are measured likewise, and which are then run by several plans, of which they keep the best.
        What :func:`tvm_coexec.build` takes.
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
    graphs = [to_graph(model).without_weights() for model in models]
    layers = [*layers, *(layer for graph in graphs for layer in layers_of(graph))]
    cpu, gpu = (None if cores is None else tuple(cores) for cores in (cpu_cores, gpu_cores))
    with open_session(DeviceChoice(device, cpu, gpu), tracker, key) as session:
        facts = session.facts()
        path = Path(out)
        opener = Profile.open if path.is_dir() and any(path.iterdir()) else Profile.create
        with opener(path, facts) as profile:
            tuner = Tuner(session, profile, target_for(facts))
            asked_for = check_layers(tuner, layers)
            _calibrate(tuner)
            until = time.monotonic() + 60 * minutes
            _measure_layers(until, tuner, asked_for)
            _measure_until(until, tuner, _stream(chosen), at_least=len(chosen))
            profile.describe(families=sorted({*profile.families, *chosen}))
            evaluations = fit(profile)
            rehearse_all(tuner, graphs, facts)
            return evaluations


def rehearse_all(tuner: Tuner, graphs: Sequence[Graph], facts: Mapping[str, Any]) -> None:
    """Find the best plan of each network by running all in turn; one that cannot be run is named and left out."""
    from tqdm import tqdm

    if not graphs:
        return
    with tuner.session.for_longer(SESSION_S) as session:
        rehearser = Rehearser(planner(tuner.profile), session, tuner.profile, tuner.target, facts)
        networks = [(graph.outputs[0], rehearser.rehearse(graph)) for graph in graphs]
        with tqdm(total=MOST_RUNS * len(networks), desc="rehearsing", unit="run") as bar:
            for _ in range(MOST_RUNS):
                for name, runs in networks:
                    try:
                        best = next(runs, None)
                    except (MeasurementError, KernelError) as error:
                        best = None
                        tqdm.write(
                            f"the network of {name!r} was not rehearsed to the end ({error}); the profile is complete, "
                            "and plans it by what was measured so far",
                            file=sys.stderr,
                        )
                    if best is not None:
                        bar.set_postfix_str(f"{name}: {best.usual_us / 1e3:.2f} ms")
                    bar.update()


def _check_families(families: Iterable[str]) -> list[str]:
    chosen = list(dict.fromkeys(families))
    for name in chosen:
        if name not in FAMILIES:
            raise InputError(f"there is no family {name!r}; choose from {', '.join(FAMILIES)}")
    if not chosen:
        raise InputError(f"no family to tune; choose from {', '.join(FAMILIES)}")
    return chosen


def check_layers(tuner: Tuner, layers: Iterable[AnyLayer]) -> list[AnyLayer]:
    """Each layer once; an :class:`InputError` names one that the tuner's device cannot compute on both sides."""
    distinct = list(dict.fromkeys(layers))
    for layer in distinct:
        for side in ("cpu", "gpu"):
            if not tuner.variants(layer, side):
                raise InputError(f"the {side} has no kernels for {layer}, so that it cannot be tuned; leave it out")
    return distinct


def _calibrate(tuner: Tuner) -> None:
    """Store what joining halves and layers takes; whatever else the profile holds for planning stays good."""
    overheads = measure_overheads(tuner)
    found = {"overheads": asdict(overheads), "traffic": asdict(measure_traffic(tuner, overheads))}
    tuner.profile.describe(planning={**(tuner.profile.planning or {}), **found})


def _measure_layers(until: float, tuner: Tuner, layers: Sequence[AnyLayer]) -> None:
    """Measure every way to compute and to divide each layer, then search on while there is time."""
    from tqdm import tqdm

    layers = list(dict.fromkeys(way for layer in layers for way in ways_to_divide(layer)))
    for layer in tqdm(layers, desc="measuring", unit="layer", disable=not layers):
        tuner.measure_all(first_candidates(tuner, layer), training_points(layer))
    search_variants(tuner, layers, lambda: _learn(undisturbed(tuner.profile.samples()), tuner.profile.facts), until)


def _stream(families: Sequence[str]) -> Iterator[AnyLayer]:
    """Rounds of every family's layers; a round has one of each family before it has more of any."""
    streams = {name: FAMILIES[name]() for name in families}
    while True:
        for place in range(max(_SHARES.values())):
            for name, stream in streams.items():
                if place < _SHARES[name]:
                    yield next(stream)


def _measure_until(until: float, tuner: Tuner, layers: Iterator[AnyLayer], at_least: int) -> None:
    """Measure until the time has come, but not before the first ``at_least`` layers are done."""
    from tqdm import tqdm

    start = time.monotonic()
    with tqdm(
        total=max(round(until - start), 0),
        unit="s",
        desc="measuring",
        bar_format="{l_bar}{bar}| {n:.0f}/{total} s {postfix}",
    ) as bar:
        for count, layer in enumerate(layers, 1):
            tuner.measure_all(tuner.candidates(layer), training_points(layer))
            now = time.monotonic()
            bar.n = min(now - start, bar.total)
            bar.set_postfix_str(f"{count} layers")
            if now > until and count >= at_least:
                return


def processors(facts: dict[str, Any]) -> dict[str, Processor]:
    """What the features know of each side's processor."""
    caches = facts.get("cache_bytes", {})
    own, shared = caches.get("l2", 0), usable_cache_bytes(caches.get("l3", 0))
    workers = {"cpu": len(facts["cpu_cores"]), "gpu": facts["compute_units"]}
    return {side: Processor(count, own, shared) for side, count in workers.items()}


def _learn(samples: Sequence[Sample], facts: dict[str, Any]) -> dict[str, LatencyPredictor]:
    """A predictor of each side."""
    return {
        side: train([sample for sample in samples if sample.side == side], side, processor)
        for side, processor in processors(facts).items()
    }


def fit(profile: Profile) -> list[Evaluation]:
    """Train both predictors on all samples of a profile, and store them with their error on held-out layers."""
    measured = list(profile.samples())
    samples = undisturbed(measured)
    evaluations = []
    for side, predictor in _learn(samples, profile.facts).items():
        own = [sample for sample in samples if sample.side == side]
        evaluations.append(evaluate(own, side, predictor.processor))
        predictor.save(profile.predictor_path(side))
    profile.describe(
        report={evaluation.side: evaluation.to_json() for evaluation in evaluations},
        planning={
            **(profile.planning or {}),
            "estimates_us": {side: dict(one.coefficients) for side, one in fit_estimates(samples).items()},
            "disturbance": asdict(Disturbance.of(measured)),
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
        session = stack.enter_context(open_session(DeviceChoice.again(device.facts())))
        facts = session.facts()
        if profile is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tvm-coexec-"))
            store = stack.enter_context(Profile.create(Path(folder) / "profile", facts))
        else:
            store = stack.enter_context(Profile.open(profile, facts))
        tuner = Tuner(session, store, target_for(facts))
        for layer in tqdm(list(dict.fromkeys(layers)), desc="measuring", unit="layer", leave=False):
            _search_split(tuner, layer)
        return list(store.samples()), measure_overheads(tuner)


def _search_split(tuner: Tuner, layer: AnyLayer) -> None:
    """Measure an even grid of splits, then the neighbourhood of the best, until it is known unit by unit."""
    candidate = tuner.default_candidate(layer)
    low, high = 0, layer.units
    while True:
        splits = sorted({round(float(split)) for split in np.linspace(low, high, 7)})
        tuner.measure(candidate, [Point(split, layer.units - split, repeats_for(layer)) for split in splits])
        failure = tuner.profile.failure(candidate)
        if failure is not None:
            warnings.warn(f"the splits of {layer} cannot be measured: {failure}", stacklevel=2)
            return
        best = plan_measured("layer", layer, tuner.profile.samples(), Overheads(0.0)).cpu_units
        if len(splits) == high - low + 1:
            return
        place = splits.index(best) if best in splits else len(splits) // 2
        low, high = splits[max(place - 1, 0)], splits[min(place + 1, len(splits) - 1)]


def planner(profile: Profile) -> Planner:
    """The planner of a tuned profile."""
    known = profile.planning if isinstance(profile.planning, dict) else {}
    missing = {"overheads", "traffic", "estimates_us", "disturbance"} - known.keys()
    if missing:
        raise InputError(
            f"{profile.path} was not tuned to the end or by an older release: it lacks {' and '.join(sorted(missing))};"
            f" go on with `tvm-coexec tune --out {profile.path}`, its device and families"
        )
    cpu, gpu = (LatencyPredictor.load(profile.predictor_path(side)) for side in ("cpu", "gpu"))
    try:
        overheads = Overheads(**known["overheads"])
        estimates = {side: BaseTime(tuple(terms.items())) for side, terms in known["estimates_us"].items()}
        traffic, disturbance = Traffic.from_json(known["traffic"]), Disturbance(**known["disturbance"])
        hardware = target_for(profile.facts).hardware
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(profile.path, error) from None
    return Planner(
        cpu,
        gpu,
        hardware,
        overheads,
        estimates=estimates,
        traffic=traffic,
        disturbance=disturbance,
        measured=profile.measured_variants(),
        failed=profile.failed_variants(),
        rehearsals=profile.rehearsals(),
    )
