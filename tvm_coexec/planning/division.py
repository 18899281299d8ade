"""One way to divide a layer, what that takes, and whether it is worth it."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_coexec.layers import AnyLayer, Variant

from .chances import NO_TIME, Time, chance_of_gain
from .plan import LayerPlan
from .simulation import Costs

_LIKELY = 0.5
"""A layer is divided where a gain over the better side alone is likelier than a loss, by what the times may be off."""

_SURE = 0.95
"""Chance of a gain from which on nothing is said of it."""

SYNC_MARGIN = 0.5
"""Share of the synchronisation's time that a split must gain on top: it was measured on one small layer, and varies."""


@dataclass(frozen=True)
class Overheads:
    """What synchronisation adds to a layer.

    Parameters
    ----------
    split_us
        Time of a split layer beyond that of its longer half.
    gpu_alone_us
        Time of a layer on the GPU alone beyond that of its kernel by itself; negative where a kernel begins before the
        one before it has told that it ended. The CPU alone needs nobody.
    gpu_interval_us
        The least time from one launch on the GPU to the next, however small the kernels.
    """

    split_us: float
    gpu_alone_us: float = 0.0
    gpu_interval_us: float = 0.0

    def costs(self, margin: float = 0.0) -> Costs:
        """The same for simulating a network, in which a split must gain a share ``margin`` of a synchronisation."""
        return Costs(self.split_us, self.gpu_alone_us, self.gpu_interval_us, margin * self.split_us)


@dataclass(frozen=True)
class Half:
    """A side's half with its best variant."""

    variant: Variant
    time: Time

    @property
    def us(self) -> float:
        """What it is expected to take."""
        return self.time.us


@dataclass(frozen=True)
class Division:
    """One way to divide a layer, each side with its best variant; the time is that of the layer on its own."""

    cpu_units: int
    cpu: Half | None
    gpu: Half | None
    total_us: float

    def to_plan(self, name: str, layer: AnyLayer, reason: str) -> LayerPlan:
        return LayerPlan(
            name=name,
            layer=layer,
            cpu_units=self.cpu_units,
            cpu=self.cpu.variant if self.cpu else None,
            gpu=self.gpu.variant if self.gpu else None,
            cpu_us=self.times[0].us,
            gpu_us=self.times[1].us,
            total_us=self.total_us,
            reason=reason,
            cpu_interval_us=self.times[0].interval_us,
            gpu_interval_us=self.times[1].interval_us,
        )

    @property
    def times(self) -> tuple[Time, Time]:
        """The times of the CPU's half and the GPU's; no time where there is none."""
        return self.cpu.time if self.cpu else NO_TIME, self.gpu.time if self.gpu else NO_TIME


def side_alone(side: str, layer: AnyLayer, half: Half, overheads: Overheads) -> Division:
    """Put all of a layer on one side."""
    if side == "cpu":
        return Division(layer.units, half, None, half.us)
    return Division(0, None, half, overheads.costs().launched_us(half.us))


def side_of(alone: Division) -> str:
    """The side that has all of a layer."""
    return "cpu" if alone.gpu is None else "gpu"


def decide(name: str, layer: AnyLayer, split: Division, alone: Division, overheads: Overheads) -> LayerPlan:
    """The split where a gain is likelier than a loss, or else one side alone, with the reason."""
    added_us = (1 + SYNC_MARGIN) * overheads.split_us
    side = side_of(alone)
    alone_time = alone.times[side == "gpu"].plus(alone.total_us - max(time.us for time in alone.times))
    chance = chance_of_gain(split.times, added_us, alone_time, int(side == "gpu"))
    speedup = alone.total_us / split.total_us
    if chance > _LIKELY:
        uncertain = f", with a chance of {chance:.0%}" if chance < _SURE else ""
        return split.to_plan(
            name, layer, f"split: {speedup:.2f} times as fast as the {side} alone ({alone.total_us:.1f} us){uncertain}"
        )
    if speedup > 1:
        return alone.to_plan(
            name,
            layer,
            f"{side} alone: a split may be {speedup:.2f} times as fast, but with a chance of {chance:.0%} alone",
        )
    times = f"{split.total_us:.1f} us, {overheads.split_us:.1f} us of it synchronisation"
    return alone.to_plan(name, layer, f"{side} alone: the best split takes {times}")
