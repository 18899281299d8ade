"""Calibration: what a device adds to the times of halves where these are joined to layers, and layers to networks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from tvm_coexec.compiler.probes import package_halved
from tvm_coexec.errors import KernelError
from tvm_coexec.graph import Graph, Node, Tensor
from tvm_coexec.layers import AnyLayer, Conv2d, Linear
from tvm_coexec.planning.division import Overheads
from tvm_coexec.planning.network import reads_of
from tvm_coexec.planning.simulation import Option, simulate
from tvm_coexec.prediction.layer_facts import touched_bytes
from tvm_coexec.prediction.memory_model import MemoryModel, Rates
from tvm_coexec.prediction.reads import Reads
from tvm_coexec.profile.records import Point, PointTimes
from tvm_coexec.rpc.outcomes import RefusedError

from .reading import measure_reads
from .tuner import Tuner

_OVERHEAD_LAYER = Linear(8, 64, 64, ("bias",))
_ON_THE_GPU = Point(0, _OVERHEAD_LAYER.units, 25)

_LAUNCHES = 0.05
"""Where the smallest layer takes a GPU so much longer than its kernel would in a long chain, it is launches that follow
each other no faster. On an NVIDIA H200 they take 6 us, a small kernel 5 to 7 by its own events, and larger ones 2 us
less than their events tell. A CPU device launches in less."""

_LAUNCH_TRIALS = 3
"""Times that the interval of launches is measured again when the device is warm. It is a bound that launches reach,
and whatever else the host does at the time makes it longer: on an H200 it was 8.0 us when tuning began and 5.4 later,
which made plans leave layers to the CPU that the GPU computes in 0.7 of the time."""

_LARGER_LAYERS = tuple(Linear(rows, 512, 512, ("bias",)) for rows in (32, 128, 512, 2048))
_LONG = 3.0
"""The first of these that takes so many times as long as launches shows what is left of them beside a long kernel."""

_STAGES = ((112, 16, 96, 24), (56, 24, 144, 32), (28, 32, 192, 64))
"""Stages of the network that shows what handing activations over takes: height and width, then the channels of a
block, those that it expands them to, and those of the next. They are MobileNet-v2's, which computes little on large
activations."""

_LAYERS = 3 * len(_STAGES)
"""Each stage expands, filters and narrows."""

_TRIALS = 5
"""Times that the network is measured next to its layers. What they differ by is small, and one of them may meet a
disturbance that the other does not: the median of the trials counts."""

_REPEATS = (3, 30)
_POINT_US = 5e5
"""A layer is repeated for about this long, within these bounds."""

MOST_S = 60.0
"""What calibration may take: a slow device's disturbances are short beside its layers."""

_LAYER_QUANTILE, _RUN_QUANTILE = 0.1, 0.25
"""Layers as the predictors learn them, by their lower deciles; runs by their lower quartiles: what is left of their
medians when the layers are taken away is mostly noise."""

_LEAST_SHARE = 0.01
"""Share of a run's time that activations are taken to cost at least: less cannot be told from noise."""

_NOTHING_KNOWN = Overheads(0.0)


def calibrate(tuner: Tuner, until: float) -> None:
    """Store what joining halves and layers takes; whatever else the profile holds for planning stays.

    What an earlier tuning found counts where it had the same driver and kernels.

    Parameters
    ----------
    until
        When this is to have ended, by :func:`time.monotonic`.
    """
    began = time.monotonic()
    smallest = time_smallest_layer(tuner)
    first_run_s = time.monotonic() - began
    planning = tuner.profile.planning or {}
    runs = tuner.profile.runs()
    earlier = planning if not runs or any(run.is_current for run in runs) else {}
    stored = earlier.get("overheads", {})
    known = Overheads(0.0, stored.get("gpu_alone_us", 0.0), stored.get("gpu_interval_us", 0.0))
    overheads = measure_overheads(tuner, smallest, began + (until - began) / 4, known)
    reads = _most_known(measure_reads(tuner, (began + until) / 2), earlier.get("reads"))
    rates = MemoryModel.from_json(earlier["memory_model"]).activations if "memory_model" in earlier else None
    network_s = 2 * _LAYERS * first_run_s  # each of its layers is compiled twice: alone, and in the network
    found = {
        "overheads": asdict(overheads),
        "reads": {side: asdict(own) for side, own in reads.items()},
        "memory_model": asdict(measure_memory(tuner, overheads, reads, until - network_s, rates)),
    }
    tuner.profile.describe(planning={**planning, **found})


def _most_known(found: dict[str, Reads], stored: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Reads]:
    """The reads of an earlier tuning where this one had no time for as much: what small parts take is launches."""
    if not stored:
        return found
    known = {side: Reads.from_json(own) for side, own in stored.items()}
    return known if known["gpu"].amount_bytes[-1:] > found["gpu"].amount_bytes[-1:] else found


def time_smallest_layer(tuner: Tuner) -> tuple[PointTimes, PointTimes]:
    """A layer so small that little but synchronisation and launches is left: halved, and on the GPU alone."""
    candidate, units = tuner.default_candidate(_OVERHEAD_LAYER), _OVERHEAD_LAYER.units
    half = units // 2
    both, gpu = tuner.measure_now(candidate, [Point(half, units - half, 100), _ON_THE_GPU])
    return both, gpu


def measure_overheads(
    tuner: Tuner, smallest: tuple[PointTimes, PointTimes], until: float, known: Overheads = _NOTHING_KNOWN
) -> Overheads:
    """Measure what synchronisation and launches add to a layer.

    Parameters
    ----------
    smallest
        What :func:`time_smallest_layer` found.
    until
        After this time, by :func:`time.monotonic`, no other larger layer is measured.
    known
        What an earlier tuning found: of layers on the GPU alone, which stays, since samples were told by it, and of the
        interval of launches, which only disturbances make longer.
    """
    both, gpu = smallest
    split_us = np.median(np.array(both.wall_us) - np.maximum(both.cpu_us, both.gpu_us))
    split_us, kernel_us, wall_us = max(float(split_us), 0.0), _median(gpu.gpu_us), _median(gpu.wall_us)
    if tuner.target.hardware.opencl_type != "gpu":
        return Overheads(split_us, max(wall_us - kernel_us, 0.0))
    beyond_us = known.gpu_alone_us or _beyond_kernels_us(tuner, wall_us, until)
    interval_us = _interval_us([gpu, *_launches(tuner, until)], beyond_us)
    return Overheads(split_us, beyond_us, _shorter(interval_us, known.gpu_interval_us))


def measure_launches_again(tuner: Tuner) -> None:
    """Store a shorter interval of a GPU's launches, if it reaches one now that it has worked for a while."""
    planning = tuner.profile.planning or {}
    overheads = planning.get("overheads", {})
    if tuner.target.hardware.opencl_type != "gpu" or not overheads:
        return
    try:
        interval_us = _interval_us([*_launches(tuner, math.inf)], overheads["gpu_alone_us"])
    except (KernelError, RefusedError):
        return
    shorter_us = _shorter(overheads["gpu_interval_us"], interval_us)
    tuner.profile.describe(planning={**planning, "overheads": {**overheads, "gpu_interval_us": shorter_us}})


def _shorter(interval_us: float, other_us: float) -> float:
    """Give the shorter of two intervals of launches, of which 0 says that none was found.

    What one tuning reached is known to the next: measured on an H200 at the start of a second tuning, 6.3 us had become
    9.2, and plans left seven layers of 32 to the CPU that the GPU computed faster.
    """
    return min(filter(None, (interval_us, other_us)), default=0.0)


def _median(times_us: Sequence[float]) -> float:
    return float(np.median(times_us))


def _launches(tuner: Tuner, until: float) -> Iterator[PointTimes]:
    """Measure the smallest layer on the GPU alone, again and again."""
    candidate = tuner.default_candidate(_OVERHEAD_LAYER)
    for _ in range(_LAUNCH_TRIALS):
        if time.monotonic() > until:
            return
        (gpu,) = tuner.measure_now(candidate, [_ON_THE_GPU], check=False)
        yield gpu


def _interval_us(trials: Sequence[PointTimes], beyond_us: float) -> float:
    """The least time between two launches; none where the shortest of the trials is as long as its kernel.

    The trial is judged by its own kernel: a GPU that has worked for a while runs that faster too.
    """
    shortest = min(trials, key=lambda trial: _median(trial.wall_us))
    wall_us = _median(shortest.wall_us)
    return wall_us if wall_us >= (1 + _LAUNCHES) * (_median(shortest.gpu_us) + beyond_us) else 0.0


def _beyond_kernels_us(tuner: Tuner, interval_us: float, until: float) -> float:
    """What layers on the GPU alone take beyond their kernels where these are longer than the interval of launches."""
    beyond_us = 0.0
    for layer in _LARGER_LAYERS:
        if time.monotonic() > until:
            break
        try:
            (times,) = tuner.measure_now(tuner.default_candidate(layer), [Point(0, layer.units, 25)])
        except (KernelError, RefusedError):
            break
        kernel_us = _median(times.gpu_us)
        beyond_us = float(np.clip(_median(times.wall_us) - kernel_us, -interval_us, interval_us))
        if kernel_us > _LONG * interval_us:
            break
    return beyond_us


def measure_memory(
    tuner: Tuner, overheads: Overheads, reads: Mapping[str, Reads], until: float, known: Rates | None = None
) -> MemoryModel:
    """Measure what weights from memory, and activations from elsewhere, add to the times of halves.

    Parameters
    ----------
    until
        After this time, by :func:`time.monotonic`, no other trial of activations begins.
    known
        Rates of activations from an earlier tuning, which stay where there is no time for a trial; without any,
        activations are taken to come from memory, as weights do.
    """
    weights = Rates(
        alone={side: own.alone[-1] for side, own in reads.items()},
        concurrent={side: own.concurrent[-1] for side, own in reads.items()},
    )
    activations = _activation_rates(tuner, overheads, until) if time.monotonic() < until else known or weights
    return MemoryModel(weights, activations, int(sum(own.cached_bytes for own in reads.values())))


def _activation_rates(tuner: Tuner, overheads: Overheads, until: float) -> Rates:
    """How fast activations are handed over, from what a network takes longer than the sum of its layers."""
    graph = _handing_over()
    module = package_halved(graph, tuner.target, tuner.profile.facts).to_bytes()
    repeats = _repeats(tuner, graph)
    trials = [_trial(tuner, graph, module, overheads, repeats, check=True)]
    while len(trials) < _TRIALS and time.monotonic() < until:
        trials.append(_trial(tuner, graph, module, overheads, repeats, check=False))
    extra_us = np.median(trials, axis=0).tolist()
    cpu, gpu, both = (
        sum(max(touched_bytes(node.layer, np.array(_ways(node.layer)[way]))) for node in graph.nodes) / us
        for way, us in enumerate(extra_us)
    )
    return Rates(alone={"cpu": cpu, "gpu": gpu}, concurrent={"cpu": both, "gpu": both})


def _repeats(tuner: Tuner, graph: Graph) -> int:
    """How often to repeat what takes as long as the first layer does here."""
    layer = graph.nodes[0].layer
    points = [Point(*way, 1) for way in _ways(layer)]
    times = tuner.ask(tuner.default_candidate(layer), points, check=False, walls=False).points
    longest_us = max(us for point in times for us in (*point.cpu_us, *point.gpu_us))
    return int(np.clip(_POINT_US / longest_us, *_REPEATS))


def _ways(layer: AnyLayer) -> tuple[tuple[int, int], ...]:
    """Give the points of either side alone, and of both."""
    half = layer.units // 2
    return (layer.units, 0), (0, layer.units), (half, layer.units - half)


def _option(times: PointTimes) -> Option:
    cpu_us, gpu_us = (float(np.quantile(us, _LAYER_QUANTILE)) if us else 0.0 for us in (times.cpu_us, times.gpu_us))
    return Option(times.cpu_units, times.gpu_units, cpu_us, gpu_us)


def _trial(
    tuner: Tuner, graph: Graph, module: bytes, overheads: Overheads, repeats: int, *, check: bool
) -> list[float]:
    """What the network takes longer than the sum of its layers, divided in every way."""
    layers = {
        layer: tuner.measure_now(
            tuner.default_candidate(layer), [Point(*way, repeats) for way in _ways(layer)], check=check, walls=False
        )
        for layer in dict.fromkeys(node.layer for node in graph.nodes)
    }
    ways = list(zip(*(_ways(node.layer) for node in graph.nodes), strict=True))
    splits = [{node.name: own for node, (own, _) in zip(graph.nodes, way, strict=True)} for way in ways]
    runs_us = np.quantile(tuner.session.time_runs(module, splits, repeats=repeats), _RUN_QUANTILE, axis=1)
    reads, costs = reads_of(graph), overheads.costs()
    sums_us = (
        simulate(reads, [_option(layers[node.layer][way]) for node in graph.nodes], costs) for way in range(len(ways))
    )
    return [max(run - own, _LEAST_SHARE * run) for run, own in zip(runs_us.tolist(), sums_us, strict=True)]


def _handing_over() -> Graph:
    """Make blocks that expand, filter and narrow an image, each at half the size of the one before."""
    layers: list[Conv2d] = []
    for size, channels, expanded, following in _STAGES:
        window, half = Conv2d(size, size, expanded, expanded, (3, 3), (2, 2), (1, 1, 1, 1), groups=expanded), size // 2
        layers += [
            Conv2d(size, size, channels, expanded, (1, 1), epilogue=("bias", "relu")),
            replace(window, epilogue=("bias", "relu")),
            Conv2d(half, half, expanded, following, (1, 1), epilogue=("bias",)),
        ]
    tensors, nodes = [_image("x0", layers[0].input_sizes[0])], []
    for number, layer in enumerate(layers, 1):
        tensors.append(_image(f"x{number}", layer.output_size))
        nodes.append(Node(f"layer{number}", layer, f"x{number - 1}", None, f"x{number}", {}))
    return Graph({tensor.name: tensor for tensor in tensors}, [tensors[0].name], [tensors[-1].name], nodes)


def _image(name: str, size: tuple[int, ...]) -> Tensor:
    batch, h, w, channels = size
    return Tensor(name, (batch, h, w, channels), 1, (batch, h, w, channels))
