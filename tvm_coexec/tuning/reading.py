"""Measures how fast each side reads growing amounts: what a system says of its caches may be its host's, or nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvm_coexec.layers import Linear
from tvm_coexec.prediction.reads import Reads
from tvm_coexec.profile.records import Candidate, Point

from .tuner import Tuner

_K = 1024
"""Inputs of the layer that reads: a unit's weights are 128 KiB, less than any core's own cache."""

_MOST_BYTES = (64 << 20, 256 << 20)
"""What is read at most: four times the largest cache that the system tells of, within these bounds."""

_LONG_US = 1e5
"""A cache that is read for so long would hold a gigabyte on any device but an emulated one, which has none."""

_POINT_US = 5e4
_REPEATS = (6, 30)
_QUANTILE = 0.1
"""The quantile of the repetitions that counts, which predictors learn of other layers too."""


def measure_reads(tuner: Tuner) -> dict[str, Reads]:
    """Each side's rates, from a layer of one row, which does little but read its weights: any part of it is an amount.

    A part is read again and again, by one side alone, and by each its own at once.
    """
    layer = reading_layer(max(tuner.profile.facts.get("cache_bytes", {}).values(), default=0))
    unit_bytes = layer.weight_bytes / layer.units
    candidate = tuner.default_candidate(layer)
    alone_us = _affordable(tuner, candidate)
    parts = list(alone_us)
    ways = [[Point(own * part, other * part, _repeats(alone_us[part])) for part in parts] for own, other in _WAYS]
    points = [point for way in ways for point in way]
    times = tuner.measure_now(candidate, points, check=False, walls=False)  # a reference would take longer
    cpu, gpu, both = (times[start : start + len(parts)] for start in range(0, len(times), len(parts)))
    amounts = [part * unit_bytes for part in parts]
    return {
        "cpu": Reads.of(amounts, _usual([one.cpu_us for one in cpu]), _usual([one.cpu_us for one in both])),
        "gpu": Reads.of(amounts, _usual([one.gpu_us for one in gpu]), _usual([one.gpu_us for one in both])),
    }


def _affordable(tuner: Tuner, candidate: Candidate) -> dict[int, float]:
    """Parts of the layer, each twice the one before, up to one that takes long; with what it takes the slower side."""
    alone_us: dict[int, float] = {}
    for power in range((candidate.layer.units // 2).bit_length()):
        part = 1 << power
        points = [Point(own * part, other * part, 1) for own, other in _WAYS[:2]]
        times = tuner.ask(candidate, points, check=False, walls=False).points
        alone_us[part] = max(us for point in times for us in (*point.cpu_us, *point.gpu_us))
        if alone_us[part] > _LONG_US:
            break
    return alone_us


_WAYS = ((1, 0), (0, 1), (1, 1))


def reading_layer(told_cache_bytes: int) -> Linear:
    """A layer whose weights are far more than any cache holds, of each half of it."""
    most_bytes = int(np.clip(4 * told_cache_bytes, *_MOST_BYTES))
    return Linear(1, _K, most_bytes // (4 * _K), ("bias",))


def _repeats(read_us: float) -> int:
    return int(np.clip(_POINT_US / read_us, *_REPEATS))


def _usual(times_us: Sequence[Sequence[float]]) -> list[float]:
    return [float(np.quantile(us, _QUANTILE)) for us in times_us]
