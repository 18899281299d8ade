"""Launch geometry: how many work-groups a half has, and of what size. Nothing here needs a compiler."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_coexec.layers import Variant, grid_for

ERROR_BOUND = 1e-5
"""Largest error of sums of products, relative to the largest value of the output."""


@dataclass(frozen=True)
class Dispatch:
    """How a kernel is launched for a number of units, and how much of its work is padding.

    ``grid`` is the number of work-groups a unit needs on each axis; the axis ``unit_axis`` is multiplied by the units,
    and a work-group there computes so many of them ``together``. Where the axis is None, the same work-groups compute
    all units.
    """

    grid: tuple[int, int]
    group: tuple[int, int]
    unit_axis: int | None
    padded_rows: int
    together: int = 1

    def grid_for(self, units: int) -> tuple[int, int]:
        """Count the work-groups on each axis for a number of units."""
        return grid_for(self.grid, self.unit_axis, units, self.together)

    def groups(self, units: int) -> int:
        x, y = self.grid_for(units)
        return x * y

    @property
    def group_size(self) -> int:
        return self.group[0] * self.group[1]


def rows_of_group(variant: Variant) -> int:
    """Count the rows that a work-group computes; on the CPU those of a register tile."""
    params = dict(variant.params)
    return params["rows"] * params.get("row_threads", 1) * params.get("run", 1)


def fitted(variant: Variant, width: int) -> Variant:
    """The variant with vectors and work-groups for tiles of which so many channels are computed."""
    params = dict(variant.params)
    for name in {"channels", "lanes"} & params.keys():
        params[name] = min(params[name], width)
    if "channel_threads" in params:
        params["channel_threads"] = min(params["channel_threads"], width // params["lanes"])
    return Variant.make(variant.implementation, **params)


def dense_dispatch(side: str, variant: Variant, rows: int, unit_rows: int | None = None, tiles: int = 1) -> Dispatch:
    """Give the launch geometry of a dense kernel; if units are so many of its rows, each takes all ``tiles``."""
    of_side = cpu_dispatch if side == "cpu" else gpu_dispatch
    if unit_rows is None:
        return of_side(variant, rows)
    return along_rows(of_side(variant, unit_rows), tiles, rows // unit_rows)


def along_rows(unit: Dispatch, tiles: int, units: int) -> Dispatch:
    """Launch geometry of ``units`` units that are rows of all tiles, from that of one unit's rows of a tile."""
    assert unit.unit_axis is not None
    return Dispatch(unit.grid_for(tiles), unit.group, 1 - unit.unit_axis, unit.padded_rows * units)


def dispatch_of_blocks(blocks: int, variant: Variant, padded_rows: int) -> Dispatch:
    """Launch geometry of an OpenCL kernel that takes ``blocks`` work-groups a unit."""
    return Dispatch(
        grid=(blocks, 1) if variant["order"] == 0 else (1, blocks),
        group=(variant["channel_threads"], variant["row_threads"]),
        unit_axis=1 - variant["order"],
        padded_rows=padded_rows,
    )


def gpu_dispatch(variant: Variant, rows: int) -> Dispatch:
    """Launch geometry of :func:`schedule_gpu` for a layer of ``rows`` rows."""
    block = rows_of_group(variant)
    blocks = -(-rows // block)
    return dispatch_of_blocks(blocks, variant, blocks * block)


def cpu_dispatch(variant: Variant, rows: int) -> Dispatch:
    """A CPU half is one call; its groups are the register tiles that it computes."""
    blocks = -(-rows // variant["rows"])
    return Dispatch(grid=(blocks, 1), group=(1, 1), unit_axis=1, padded_rows=blocks * variant["rows"])
