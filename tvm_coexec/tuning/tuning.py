"""Tuning: layers are measured on a device, what was measured is kept in a profile, and predictors learn from it."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_coexec.compiler.target import Target, target_for
from tvm_coexec.errors import InputError, KernelError, MeasurementError
from tvm_coexec.files import is_vacant
from tvm_coexec.frontends import read_model
from tvm_coexec.graph import Graph
from tvm_coexec.layers import AnyLayer, along_partition_axes
from tvm_coexec.opencl.apart import check_apart
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.planning.from_profile import planner
from tvm_coexec.prediction.evaluation import Evaluation
from tvm_coexec.profile import Profile
from tvm_coexec.profile.profile import check_same_device

from .ahead import ModulesAhead, spare_cores
from .alone import alone_with_device, alone_with_profile
from .budget import Budget
from .calibration import MOST_S, calibrate, measure_launches_again
from .crew import PATIENCE_S
from .fitting import fit, learn
from .guided import first_candidates, search_variants
from .session import check_session, open_fleet
from .trial_runs import MOST_RUNS, SESSION_S, TrialRunner
from .tuner import Tuner
from .watch import Watch
from .workloads import (
    attention_training_layers,
    conv2d_training_layers,
    images_training_layers,
    layers_of,
    linear_training_layers,
    rowwise_training_layers,
)

if TYPE_CHECKING:
    from tvm_coexec.frontends import Model, Shapes, Values
    from tvm_coexec.rpc.client import Session

FAMILIES: dict[str, Callable[[], Iterator[AnyLayer]]] = {
    "linear": linear_training_layers,
    "rowwise": rowwise_training_layers,
    "conv2d": conv2d_training_layers,
    "images": images_training_layers,
    "attention": attention_training_layers,
}
_MOST_MINUTES = 1e5
"""Ten weeks."""

_MOST_FAILING = 3
"""So many times the layers that are needed are tried where some fail."""

_OTHERS_WAIT_S = 10.0
"""How long one of several devices that was lost is waited for before another one gets its trial."""

_TRIALS_SHARE, _TRIALS_S = 0.5, 60.0
"""Trial runs may take this share of the time for measuring besides, or so many seconds if that is more. The first run
of each network is made all the same."""

_SHARES = {"linear": 5, "rowwise": 1, "conv2d": 5, "images": 2, "attention": 1}
"""Layers of each family in a round: those that take most of a network's time get most of the tuning's."""


def tune(
    out: str | os.PathLike[str],
    *,
    device: str | None = None,
    families: Iterable[str] = ("linear",),
    minutes: float = 10.0,
    trials: int | None = None,
    layers: Iterable[AnyLayer] = (),
    models: Iterable[Model] = (),
    shapes: Shapes | None = None,
    values: Values | None = None,
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
        Any unambiguous part of the name of a local device; not together with a ``tracker``.
    families
        Of ``linear``, ``rowwise``, ``conv2d``, ``images`` and ``attention``. Layers of a family that is not tuned are
        placed by an estimate.
    minutes
        Time for measuring layers. Training comes on top, and trial runs of the models for half as long, or a minute if
        that is more; on a slow device one run of each may take longer.
    trials
        Kernels to measure at most, but for the least that training needs.
    layers
        Layers to measure before any others, with ever more of the variants that promise to be the best.
    models
        Models whose layers are measured likewise, and which are then run by several plans, of which they keep the best.
        What :func:`tvm_coexec.build` takes.
    shapes, values
        Of the models' inputs by name, as for :func:`tvm_coexec.build`.
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
        The tracker or the device cannot be reached, or another process tunes the profile or measures the device.
    """
    chosen = _check_families(families)
    if not 0 < minutes <= _MOST_MINUTES:
        raise InputError(f"minutes must be positive, {_MOST_MINUTES:g} at most, got {minutes:g}")
    if trials is not None and trials < 1:
        raise InputError(f"there must be a trial at least, got {trials}")
    path = Path(out)
    Profile.check_place(path)
    opener = Profile.create if is_vacant(path) else Profile.open
    known = _facts_of(path) if opener == Profile.open else None
    cpu, gpu = (None if cores is None else tuple(cores) for cores in (cpu_cores, gpu_cores))
    choice, budget, models = DeviceChoice(device, cpu, gpu), Budget(minutes), list(models)
    for model in models:
        read_model(model, shapes, values)  # what is wrong with one is told now; kept, all of them might fill the memory
    check_session(choice, tracker, key)
    with ExitStack() as stack:
        if known is not None:
            stack.enter_context(alone_with_profile(path))
        if tracker is None:  # a tracker lends a device to one at a time
            stack.enter_context(_alone_with(choice, path, known))
        graphs = [read_model(model, shapes, values).to_graph().without_weights() for model in models]
        layers = [*layers, *(layer for graph in graphs for layer in layers_of(graph))]
        with budget.spend("opening the device"):
            sessions = stack.enter_context(open_fleet(choice, tracker, key, known, _tell))
            facts = sessions[0].facts()
            for note in facts.get("notes", ()):
                _tell(note)
        target = target_for(facts)
        modules = ModulesAhead(target, facts, spare_cores(facts, is_local=tracker is None))
        with opener(path, facts) as profile, modules:
            if known is None:
                stack.enter_context(alone_with_profile(path))
            watches = [Watch(session, target, facts, budget) for session in sessions]
            tuner = _tuner(sessions, watches, profile, target, modules, is_lent=tracker is not None)
            _measure(budget, tuner, watches[0], check_layers(tuner, layers), chosen, trials)
            profile.describe(families=sorted({*profile.families, *chosen}))
            evaluations = fit(profile)
            run_all_trials(tuner, graphs, facts, time.monotonic() + max(_TRIALS_SHARE * 60 * minutes, _TRIALS_S))
            return evaluations


def _measure(
    budget: Budget,
    tuner: Tuner,
    watch: Watch,
    layers: Sequence[AnyLayer],
    families: Sequence[str],
    trials: int | None,
) -> None:
    """Calibrate, and measure until it is over; whatever ends it, say what each device did."""
    is_over = _is_over(budget, tuner, trials)
    try:
        with budget.spend("calibration"):
            watch.look_once()
            calibrate(tuner, time.monotonic() + min(MOST_S, budget.left_s / 4))
        with budget.spend("layers"):
            _measure_layers(is_over, tuner, layers)
            short = filter(watch.is_short, _stream(families))
            _measure_until(is_over, budget, tuner, short, at_least=len(families) + 1)  # errors need two of a kind
            measure_launches_again(tuner)
    finally:
        tuner.close()
        for line in (f"measured for {budget.summary()}", *tuner.crew.summary()):
            _tell(line)


def _tuner(
    sessions: Sequence[Session],
    watches: Sequence[Watch],
    profile: Profile,
    target: Target,
    modules: ModulesAhead,
    *,
    is_lent: bool,
) -> Tuner:
    """Make a tuner that measures on all devices; where there are several, the others take over what one has lost."""
    if len(sessions) > 1:
        for session in sessions:
            session.return_timeout_s = _OTHERS_WAIT_S
    return Tuner(
        *(sessions[0], profile, target, modules, watches[0]),
        others=list(zip(sessions, watches, strict=True))[1:],
        patience_s=PATIENCE_S if is_lent else 0.0,
        tell=_tell,
    )


def _alone_with(choice: DeviceChoice, path: Path, known: Mapping[str, Any] | None) -> AbstractContextManager[None]:
    """Hold a device of this machine, which has to be the profile's: that is known before it is opened."""
    here = check_apart(choice)
    if known is not None:
        check_same_device(path, known, here)
    return alone_with_device(here["name"])


def _facts_of(path: Path) -> dict[str, Any]:
    with Profile.open(path) as profile:
        return profile.facts


def _tell(line: str) -> None:
    """Write a line beside the bars that show progress."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def run_all_trials(tuner: Tuner, graphs: Sequence[Graph], facts: Mapping[str, Any], until: float) -> None:
    """Find the best plan of each network by running all in turn; one that cannot be run is named and left out.

    Parameters
    ----------
    until
        After this time, by :func:`time.monotonic`, no other plan is tried, once each network has run by one.
    """
    from tqdm import tqdm

    if not graphs:
        return
    with tuner.session.for_longer(SESSION_S) as session:
        runner = TrialRunner(planner(tuner.profile, tuner.target.hardware), session, tuner.profile, tuner.target, facts)
        networks = [(graph.outputs[0], runner.run_trials(graph)) for graph in graphs]
        with tqdm(total=MOST_RUNS * len(networks), desc="trial runs", unit="run") as bar:
            for number in range(MOST_RUNS):
                for name, runs in networks:
                    if number and time.monotonic() > until:
                        break
                    try:
                        best = next(runs, None)
                    except (MeasurementError, KernelError) as error:
                        best = None
                        tqdm.write(
                            f"the network of {name!r} did not finish its trial runs ({error}); the profile is "
                            "complete, and plans it by what was measured so far",
                            file=sys.stderr,
                        )
                    if best is not None:
                        bar.set_postfix_str(f"{name}: {best.usual_us / 1e3:.2f} ms")
                    bar.update()
    learned = planner(tuner.profile, tuner.target.hardware).learn_from_networks()
    tuner.profile.describe(planning={**tuner.profile.planning, "in_networks": learned.to_json()})


def _check_families(families: Iterable[str]) -> list[str]:
    chosen = list(dict.fromkeys(families))
    for name in chosen:
        if name not in FAMILIES:
            raise InputError(f"there is no family {name!r}; choose from {', '.join(FAMILIES)}")
    if not chosen:
        raise InputError(f"no family to tune; choose from {', '.join(FAMILIES)}")
    return chosen


def check_layers(tuner: Tuner, layers: Iterable[AnyLayer]) -> list[AnyLayer]:
    """Try each layer once; an :class:`InputError` names one that the tuner's device cannot compute on both sides."""
    distinct = list(dict.fromkeys(layers))
    for layer in distinct:
        for side in ("cpu", "gpu"):
            if not tuner.variants(layer, side):
                raise InputError(f"the {side} has no kernels for {layer}, so that it cannot be tuned; leave it out")
    return distinct


def _is_over(budget: Budget, tuner: Tuner, trials: int | None) -> Callable[[], bool]:
    """Tells whether to begin with no other trial."""
    most = math.inf if trials is None else trials
    return lambda: tuner.crew.begun >= most or budget.is_over(tuner.crew.usual_s)


def _measure_layers(is_over: Callable[[], bool], tuner: Tuner, layers: Sequence[AnyLayer]) -> None:
    """Measure every way to compute and to divide each layer, then search on while there is time."""
    from tqdm import tqdm

    layers = list(dict.fromkeys(way for layer in layers for way in along_partition_axes(layer)))
    works = [(one, tuner.points(layer), False) for layer in layers for one in first_candidates(tuner, layer)]
    measured = tuner.measure_all(works, is_over)
    for _ in tqdm(measured, desc="measuring", total=len(works), unit="kernel", disable=not layers):
        pass
    search_variants(tuner, layers, lambda: learn(tuner.profile), is_over)


def _stream(families: Sequence[str]) -> Iterator[AnyLayer]:
    """Give rounds of every family's layers; a round has one of each family before it has more of any."""
    streams = {name: FAMILIES[name]() for name in families}
    while True:
        for index in range(max(_SHARES.values())):
            for name, stream in streams.items():
                if index < _SHARES[name]:
                    yield next(stream)


def _measure_until(
    is_over: Callable[[], bool], budget: Budget, tuner: Tuner, layers: Iterator[AnyLayer], at_least: int
) -> None:
    """Measure until the time has come, but not before something of ``at_least`` layers is measured.

    Layers that fail do not count, unless many do.
    """
    from tqdm import tqdm

    start, tried, measured = time.monotonic(), set[AnyLayer](), set[AnyLayer]()

    def is_enough() -> bool:
        return is_over() and (len(measured) >= at_least or len(tried) >= _MOST_FAILING * at_least)

    works = (
        (one, tuner.points(layer), False)
        for layer in layers
        for one in tuner.candidates(layer)[: 1 if is_over() else None]
    )
    with tqdm(
        total=round(budget.left_s),
        unit="s",
        desc="measuring",
        bar_format="{l_bar}{bar}| {n:.0f}/{total} s {postfix}",
    ) as bar:
        for candidate, *_ in tuner.measure_all(works, is_enough):
            tried.add(candidate.layer)
            if tuner.profile.failure(candidate) is None:
                measured.add(candidate.layer)
            bar.n = min(time.monotonic() - start, bar.total)
            bar.set_postfix_str(f"{len(measured)} layers, {tuner.crew}")
