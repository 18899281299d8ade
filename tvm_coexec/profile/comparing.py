"""Tell in what two profiles differ: their devices, and the times of what both have measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from .records import Sample
from .rows import half_key

_FACTS = ("name", "cpu_model", "driver_version", "mechanism", "cpu_cores", "gpu_cores", "kernel", "versions")
"""What times depend on."""


def changed_facts(own: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Names of facts with both values, where these differ."""
    for name in _FACTS:
        if own.get(name) != other.get(name):
            yield name, own.get(name), other.get(name)


def time_ratios(own: Iterable[Sample], other: Iterable[Sample]) -> dict[str, np.ndarray]:
    """How many times as long each half took in the other samples, of those that are in both, by the side."""
    times_us = [{half_key(sample): float(np.median(sample.latency_us)) for sample in one} for one in (own, other)]
    found: dict[str, list[float]] = {"cpu": [], "gpu": []}
    for key in times_us[0].keys() & times_us[1].keys():
        found[key[1]].append(times_us[1][key] / times_us[0][key])
    return {side: np.array(sorted(ratios)) for side, ratios in found.items()}
