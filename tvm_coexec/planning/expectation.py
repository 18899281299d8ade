"""How long a planned network is expected to take, and its likely interval: what is uncertain is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from tvm_coexec.graph.dependencies import Read
from tvm_coexec.prediction.noise import Noise
from tvm_coexec.prediction.surroundings import NO_STRETCH, Stretch
from tvm_coexec.prediction.uncertainty import TAILS

from .chances import Time
from .plan import LayerPlan
from .simulation import Costs, Option, simulate

_DRAWS, _SEED = 48, 0
"""How often halves are drawn, and from which seed: a model has the same expected time whenever it is planned."""


def expected_time(
    reads: Sequence[Sequence[Read]],
    layers: Sequence[LayerPlan],
    costs: Costs,
    noise: Noise,
    stretch: Stretch = NO_STRETCH,
) -> Time:
    """The median of what a network takes where its halves take any of the times that are likely of each.

    Nodes of the same kernels err together, others by themselves.
    """
    halves = [(_half(layer, "cpu"), _half(layer, "gpu")) for layer in layers]
    kernels = {key: number for number, key in enumerate(dict.fromkeys(_kernels(layers)))}
    uncertain = stretch.low < stretch.high or any(time.low_us < time.high_us for pair in halves for time in pair)
    usual = np.exp(stretch.log_factor)
    network = Time(usual, usual * np.exp(stretch.low), usual * np.exp(stretch.high))
    totals_us = []
    for points in _draws(len(kernels) + 1) if uncertain else np.zeros((1, len(kernels) + 1)):
        options = []
        for layer, (cpu, gpu) in zip(layers, halves, strict=True):
            factors = noise.factors(is_split=bool(layer.cpu_units and layer.gpu_units))
            cpu_us, gpu_us = (
                factors[side] * float(time.at(points[kernels[layer.layer, side, variant]]))
                for side, time, variant in (("cpu", cpu, layer.cpu), ("gpu", gpu, layer.gpu))
            )
            options.append(Option(layer.cpu_units, layer.gpu_units, cpu_us, gpu_us, layer.layer.axis))
        totals_us.append(simulate(reads, options, costs) * float(network.at(points[-1])))
    low_us, usual_us, high_us = np.quantile(totals_us, [TAILS[0], 0.5, TAILS[1]]).tolist()
    return Time(usual_us, low_us, high_us)


def _half(layer: LayerPlan, side: str) -> Time:
    us, (low_us, high_us) = (
        (layer.cpu_us, layer.cpu_interval_us) if side == "cpu" else (layer.gpu_us, layer.gpu_interval_us)
    )
    return Time(us, low_us, high_us) if low_us > 0 else Time.sure(us)


def _kernels(layers: Sequence[LayerPlan]) -> list[tuple[object, ...]]:
    return [(one.layer, side, variant) for one in layers for side, variant in (("cpu", one.cpu), ("gpu", one.gpu))]


def _draws(count: int) -> np.ndarray:
    """Places of a normal distribution, one row a draw: each kernel's are spread evenly, in an order of its own."""
    rng = np.random.default_rng(_SEED)
    even = np.array([NormalDist().inv_cdf((draw + 0.5) / _DRAWS) for draw in range(_DRAWS)])
    return np.stack([rng.permutation(even) for _ in range(count)], axis=1)
