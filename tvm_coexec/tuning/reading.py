"""Measures how fast each side reads growing amounts: what a system says of its caches may be its host's, or nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from tvm_coexec.layers import Linear
from tvm_coexec.prediction.reads import Reads
from tvm_coexec.profile.records import Candidate, Point, PointTimes

from .tuner import Tuner

_K = 1024
"""Inputs of the layer that reads: a unit's weights are 128 KiB, less than any core's own cache."""

_MOST_BYTES = (64 << 20, 256 << 20)
"""What is read at most: four times the largest cache that the system tells of, within these bounds."""

_LONG_US = 1e5
"""A cache that is read for so long would hold a gigabyte on any device but an emulated one, which has none."""

_POINT_US = 5e4
"""A part is read for about this long."""
_REPEATS, _FEW_REPEATS = (6, 30), (3, 3)
"""How often a part is read, within bounds; the latter where there is not time enough for more."""

_READS = 4
"""Times that a part is read for each repetition: by either side alone, and by both, whose times need two programs."""
_FEWEST_PARTS = 2
"""Parts without whose times there is nothing to compare."""

_QUANTILE = 0.1
"""The quantile of the repetitions that counts, which predictors learn of other layers too."""


_WAYS = ((1, 0), (0, 1), (1, 1))
"""How many of a part each side reads: the CPU alone, the GPU alone, both."""

_Looks = Mapping[int, Sequence[PointTimes]]
"""Parts of the layer by their units, each with its times in every way."""


def measure_reads(tuner: Tuner, until: float) -> dict[str, Reads]:
    """Each side's rates, from a layer of one row, which does little but read its weights: any part of it is an amount.

    A part is read again and again, by one side alone, and by each its own at once.

    Parameters
    ----------
    until
        When this is to have ended, by :func:`time.monotonic`: of a slow device fewer parts are read, and less often.
    """
    layer = reading_layer(max(tuner.profile.facts.get("cache_bytes", {}).values(), default=0))
    unit_bytes = layer.weight_bytes / layer.units
    candidate = tuner.default_candidate(layer)
    looks = _look(tuner, candidate, until)
    times = _measured(tuner, candidate, looks, until)
    cpu, gpu, both = zip(*times.values(), strict=True)
    amounts = [part * unit_bytes for part in times]
    return {
        "cpu": Reads.of(amounts, _usual([one.cpu_us for one in cpu]), _usual([one.cpu_us for one in both])),
        "gpu": Reads.of(amounts, _usual([one.gpu_us for one in gpu]), _usual([one.gpu_us for one in both])),
    }


def _look(tuner: Tuner, candidate: Candidate, until: float) -> _Looks:
    """Read each part once, and go on with twice as much up to one that takes long."""
    looks: dict[int, Sequence[PointTimes]] = {}
    for power in range((candidate.layer.units // 2).bit_length()):
        if time.monotonic() > until and len(looks) >= _FEWEST_PARTS:
            break
        part = 1 << power
        looks[part] = tuner.ask(candidate, _points(part, 1), check=False, walls=False).points
        if _slower_us(looks[part]) > _LONG_US and len(looks) >= _FEWEST_PARTS:
            break
    return looks


def _measured(tuner: Tuner, candidate: Candidate, looks: _Looks, until: float) -> _Looks:
    """The times of all parts, repeated as often as there is time for."""
    for bounds in (_REPEATS, _FEW_REPEATS):
        repeats = {part: int(np.clip(_POINT_US / _slower_us(look), *bounds)) for part, look in looks.items()}
        needed_us = _READS * sum(_slower_us(looks[part]) * (3 + count) for part, count in repeats.items())
        if time.monotonic() + needed_us / 1e6 < until:
            points = [point for part, count in repeats.items() for point in _points(part, count)]
            times = tuner.measure_now(candidate, points, check=False, walls=False)  # a reference would take longer
            return {part: times[begin : begin + 3] for begin, part in zip(range(0, len(times), 3), looks, strict=True)}
    return looks


def _points(part: int, repeats: int) -> list[Point]:
    return [Point(own * part, other * part, repeats) for own, other in _WAYS]


def _slower_us(look: Sequence[PointTimes]) -> float:
    """What a part takes the slower side alone."""
    cpu, gpu, _ = look
    return max(*cpu.cpu_us, *gpu.gpu_us)


def reading_layer(told_cache_bytes: int) -> Linear:
    """A layer whose weights are far more than any cache holds, of each half of it."""
    most_bytes = int(np.clip(4 * told_cache_bytes, *_MOST_BYTES))
    return Linear(1, _K, most_bytes // (4 * _K), ("bias",))


def _usual(times_us: Sequence[Sequence[float]]) -> list[float]:
    return [float(np.quantile(us, _QUANTILE)) for us in times_us]
