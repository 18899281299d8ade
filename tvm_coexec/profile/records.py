"""What is measured: candidates and points on the way in, times and samples on the way out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tvm_coexec.layers import AnyLayer, Variant

Side = Literal["cpu", "gpu"]

VariantSets = Mapping[tuple[str, AnyLayer], frozenset[Variant]]
"""Some variants of each side and layer."""


@dataclass(frozen=True)
class Sample:
    """Times of one half, measured alone or while the other side worked.

    Parameters
    ----------
    side
        The side whose times these are.
    variant
        How this side computed.
    units
        What this side computed.
    other_units
        What the other side computed meanwhile; 0 where this side was measured alone.
    latency_us
        Every repetition, in the order of measuring.
    other_variant
        How the other side computed; None where this side was measured alone.
    canary_us
        What the side took for the canary before and after, of both the less, which tells how fast it was; 0 where none
        ran, as is usual for most of what is short.
    run
        The run of a profile that it is of; 0 of one that comes of no profile. A run is of one device.
    """

    layer: AnyLayer
    side: Side
    variant: Variant
    units: int
    other_units: int
    latency_us: tuple[float, ...]
    other_variant: Variant | None = None
    canary_us: float = 0.0
    run: int = field(default=0, compare=False)

    @property
    def median_us(self) -> float:
        """The time that stands for the repetitions: an interrupt spoils a mean, luck spoils a minimum."""
        return statistics.median(self.latency_us)


@dataclass(frozen=True)
class Candidate:
    """A layer and the variants that would compute its halves: what one module for measuring holds."""

    layer: AnyLayer
    cpu: Variant
    gpu: Variant


@dataclass(frozen=True)
class Point:
    """How much each side computes in one measurement, and how often; 0 units leave a side idle."""

    cpu_units: int
    gpu_units: int
    repeats: int = 10


@dataclass(frozen=True)
class PointTimes:
    """Times at one point, an entry a repetition; those of an idle side are empty."""

    cpu_units: int
    gpu_units: int
    cpu_us: tuple[float, ...]
    gpu_us: tuple[float, ...]
    wall_us: tuple[float, ...]

    @property
    def repeats(self) -> int:
        """How often the point was measured."""
        return max(len(self.cpu_us), len(self.gpu_us))


HalvesUs = tuple[tuple[float, ...], tuple[float, ...]]
"""What the CPU half and the GPU half of one layer took, an entry a run; empty where a side has none."""


@dataclass(frozen=True)
class NetworkTimes:
    """Times of a network: of whole runs, and of the halves of each layer in runs with timelines."""

    latency_us: tuple[float, ...]
    halves_us: tuple[HalvesUs, ...]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> NetworkTimes:
        """Read lists of numbers; raises ``ValueError`` or ``TypeError`` where they are none."""
        halves_us = tuple((_floats(cpu_us), _floats(gpu_us)) for cpu_us, gpu_us in fields["halves_us"])
        return cls(_floats(fields["latency_us"]), halves_us)

    def faster(self, factor: float) -> NetworkTimes:
        """The times, had all been so many times as fast."""

        def divided(times_us: Sequence[float]) -> tuple[float, ...]:
            return tuple(us / factor for us in times_us)

        halves_us = tuple((divided(cpu_us), divided(gpu_us)) for cpu_us, gpu_us in self.halves_us)
        return NetworkTimes(divided(self.latency_us), halves_us)


def _floats(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(map(float, values))


def samples_of(
    candidate: Candidate, times: Sequence[PointTimes], canary_us: Mapping[str, float] | None = None
) -> list[Sample]:
    """One sample for each side that had work at each point."""
    sides: tuple[Side, ...] = ("cpu", "gpu")
    samples = []
    for point in times:
        units, times_us = (point.cpu_units, point.gpu_units), (point.cpu_us, point.gpu_us)
        variants = (candidate.cpu, candidate.gpu)
        for own, side in enumerate(sides):
            if units[own]:
                samples.append(
                    Sample(
                        layer=candidate.layer,
                        side=side,
                        variant=variants[own],
                        units=units[own],
                        other_units=units[1 - own],
                        latency_us=times_us[own],
                        other_variant=variants[1 - own] if all(units) else None,
                        canary_us=(canary_us or {}).get(side, 0.0),
                    )
                )
    return samples
