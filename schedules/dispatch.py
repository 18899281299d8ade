"""Launch geometry: how many work-groups a half has, and of what size. Nothing here needs a compiler."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_coexec.layers import Variant


@dataclass(frozen=True)
class Dispatch:
    """How a kernel is launched for a number of units, and how much of its work is padding.

    ``grid`` is the number of work-groups a unit needs on each axis; the axis ``unit_axis`` is multiplied by the units.
    """

    grid: tuple[int, int]
    group: tuple[int, int]
    unit_axis: int
    padded_rows: int

    def groups(self, units: int) -> int:
        return self.grid[0] * self.grid[1] * units

    @property
    def group_size(self) -> int:
        return self.group[0] * self.group[1]


def gpu_dispatch(variant: Variant, rows: int) -> Dispatch:
    """Launch geometry of :func:`schedule_gpu` for a layer of ``rows`` rows."""
    block = variant["rows"] * variant["row_threads"]
    blocks = -(-rows // block)
    grid = (blocks, 1) if variant["order"] == 0 else (1, blocks)
    group = (variant["channel_threads"], variant["row_threads"])
    return Dispatch(grid=grid, group=group, unit_axis=1 - variant["order"], padded_rows=blocks * block)


def cpu_dispatch(variant: Variant, rows: int) -> Dispatch:
    """A CPU half is one call; its groups are the register tiles that it computes."""
    blocks = -(-rows // variant["rows"])
    return Dispatch(grid=(blocks, 1), group=(1, 1), unit_axis=1, padded_rows=blocks * variant["rows"])
