"""A made-up device whose times are known exactly: for tests of planning, which sees samples and no device."""

from __future__ import annotations

import itertools
import random
from dataclasses import asdict
from functools import lru_cache

from tvm_coexec import schedules
from tvm_coexec.layers import TILE, Hardware, Linear, Variant
from tvm_coexec.planning.division import Overheads
from tvm_coexec.prediction.features import Processor
from tvm_coexec.prediction.memory_model import MemoryModel, Rates
from tvm_coexec.prediction.noise import Noise
from tvm_coexec.prediction.predictors import LatencyPredictor, train
from tvm_coexec.prediction.reads import Reads
from tvm_coexec.profile.records import Sample

HARDWARE = Hardware(64, 32, "cpu", 4096)
CACHE_BYTES = 1 << 20
_AMOUNTS = [float(1 << power) for power in range(17, 28)]
_ALONE_US, _CONCURRENT_US = (
    [amount / 1e6 + max(0.0, amount - CACHE_BYTES) / bytes_per_us for amount in _AMOUNTS]
    for bytes_per_us in (60e3, 45e3)
)
PROCESSOR = Processor(workers=1, reads=Reads.of(_AMOUNTS, _ALONE_US, _CONCURRENT_US))
OVERHEADS = Overheads(split_us=4.0)
RATES = Rates({"cpu": 20e3, "gpu": 18e3}, {"cpu": 12e3, "gpu": 10e3})
PLANNING = {
    "overheads": asdict(OVERHEADS),
    "reads": {side: asdict(PROCESSOR.reads) for side in ("cpu", "gpu")},
    "memory_model": asdict(MemoryModel(RATES, RATES, CACHE_BYTES)),
    "estimates_us": {side: {"constant": 1.0, "flops": 1e-5, "bytes": 1e-5} for side in ("cpu", "gpu")},
    "noise": asdict(Noise({"cpu": 1.1, "gpu": 1.2}, {"cpu": 1.1, "gpu": 1.2})),
}
"""What a profile of it keeps for planning besides the predictors."""

_GFLOPS = {"cpu": 110.0, "gpu": 100.0}
_LAUNCH_US = {"cpu": 0.5, "gpu": 3.0}


def latency_us(layer: Linear, side: str, variant: Variant, units: int, other_units: int) -> float:
    """Register tiles that suit the rows are fast; weights beyond the core's cache cost, and more so in a co-run."""
    launch = schedules.family(layer).dispatch(layer, side, variant)
    rows = variant["rows"]
    latency_bound = max(1.0, 8 / (rows * 2 * variant["k_split"]))
    inefficiency = (1 + 0.4 / rows) * latency_bound * (1.05 if variant["unroll"] == 1 else 1.0)
    compute_us = 2 * launch.padded_rows * layer.k * units * TILE * inefficiency / (_GFLOPS[side] * 1e3)
    weights = 4 * layer.k * TILE * units
    passes = launch.groups(1) if variant["order"] == 1 else 1
    spilled = max(0, weights - CACHE_BYTES) * passes
    bandwidth_gbps = 60.0 if other_units == 0 else 45.0
    traffic_us = spilled / (bandwidth_gbps * 1e3)
    call_us = 0.02 * units + 0.03 * launch.groups(units)
    return _LAUNCH_US[side] + max(compute_us, traffic_us) + 0.2 * min(compute_us, traffic_us) + call_us


def variants(layer: Linear, side: str) -> list[Variant]:
    """Every candidate of one side."""
    found: list[Variant] = schedules.family(layer).variants(layer, side, HARDWARE)
    return found


def best_us(layer: Linear, side: str, units: int, other_units: int) -> float:
    """The time of a half by the best variant; nothing where there is no half."""
    if units == 0:
        return 0.0
    return min(latency_us(layer, side, variant, units, other_units) for variant in variants(layer, side))


def total_us(layer: Linear, cpu_units: int, cpu: Variant | None, gpu: Variant | None) -> float:
    """The true time of a planned layer."""
    gpu_units = layer.units - cpu_units
    cpu_us = latency_us(layer, "cpu", cpu, cpu_units, gpu_units) if cpu else 0.0
    gpu_us = latency_us(layer, "gpu", gpu, gpu_units, cpu_units) if gpu else 0.0
    return max(cpu_us, gpu_us) + (OVERHEADS.split_us if cpu and gpu else 0.0)


def optimum_us(layer: Linear) -> float:
    """The true time of the best split, by the best variants."""
    alone_us = min(best_us(layer, side, layer.units, 0) for side in ("cpu", "gpu"))
    splits_us = (
        max(
            best_us(layer, "cpu", cpu_units, layer.units - cpu_units),
            best_us(layer, "gpu", layer.units - cpu_units, cpu_units),
        )
        for cpu_units in range(1, layer.units)
    )
    return min(alone_us, *(us + OVERHEADS.split_us for us in splits_us))


def some_layers(count: int, seed: int) -> list[Linear]:
    """Layers of the sizes that plans are judged by, small and large ones alike."""
    rng = random.Random(seed)
    return [
        Linear(m=int(2 ** rng.uniform(0, 9)), k=int(2 ** rng.uniform(6, 12)), n=int(2 ** rng.uniform(6, 12)))
        for _ in range(count)
    ]


def measure(layers: list[Linear], side: str, noise: float = 0.01, variants_per_layer: int = 4) -> list[Sample]:
    """Samples as tuning takes them: some variants of each layer, alone and beside the other side, at a few splits."""
    rng = random.Random(side)
    samples = []
    for layer in layers:
        candidates = variants(layer, side)
        chosen = rng.sample(candidates, min(variants_per_layer, len(candidates)))
        shares = (1.0, 0.75, 0.5, 0.25)
        for variant, share, co_run in itertools.product(chosen, shares, (False, True)):
            units = max(1, round(share * layer.units))
            other_units = layer.units - units if co_run else 0
            if co_run and other_units == 0:
                continue
            true_us = latency_us(layer, side, variant, units, other_units)
            times_us = tuple(true_us * rng.lognormvariate(0, noise) for _ in range(5))
            samples.append(Sample(layer, side, variant, units, other_units, times_us))
    return samples


@lru_cache
def trained(side: str) -> LatencyPredictor:
    """A predictor that several tests share."""
    return train(measure(some_layers(40, seed=1), side), side, PROCESSOR)
