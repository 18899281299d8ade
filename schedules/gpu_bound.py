"""How long kernels of a dense product take a GPU at least, in cycles: what orders the search space.

A compute unit multiplies, reads local memory and reads global memory at rates of its own, and waits for each chunk of
the reduction unless other work-groups have work meanwhile; how many it holds depends on their registers, items and
local memory. The constants were fitted to an NVIDIA H200. Other GPUs have other ones, but the same kinds of limits.
Everything is computed for many kernels at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvm_coexec.layers import TILE, Hardware

from .few_rows import Reading
from .product import LANES, Extents
from .tiles import Tiling

Columns = Mapping[str, np.ndarray]
"""Properties of many kernels by name, one value a kernel."""

_UNIT_LANES = 128
"""Multiply-adds of a compute unit in a cycle."""
_REGISTERS, _UNIT_ITEMS = 65536, 2048
"""Registers of a compute unit, and the work-items that it holds at most."""
_UNIT_LOCAL = 4
"""Local memory of a compute unit, over what one work-group may have."""
_OTHER_REGISTERS = 26
"""Registers that an item needs besides those of its sums and operands: for addresses and counters."""
_LOCAL_BYTES, _GLOBAL_BYTES = 165.0, 17.0
"""Bytes that a compute unit reads in a cycle of local and of global memory."""
_LATENCY = 1000.0
"""Cycles from a read of global memory to the products, barriers included."""
_BUSY_ITEMS = 130
"""Work-items with which a compute unit reaches these rates."""
_PAUSE = 95.0
"""Cycles that a step takes besides, for its barrier and its addresses."""
_START = 16000.0
"""Cycles that a kernel takes to be launched, to begin and to end."""
_MEETING = 5000.0
"""Cycles that the last work-group to arrive needs besides its reading of the others' parts."""


@dataclass(frozen=True)
class Steps:
    """Work-groups of some kernels, and what each does; one value a kernel.

    Parameters
    ----------
    groups
        Work-groups that are launched.
    count
        Steps that a work-group takes one after the other, each of which loads, multiplies and waits.
    multiply_adds, local_traffic, global_traffic
        What a work-group does in a step; what it moves, in bytes.
    finish_traffic
        Bytes that the last work-group to arrive reads at the end.
    items
        Work-items of a work-group.
    registers
        Registers of a work-item, roughly.
    least_registers
        Those that are left where a compiler puts off what is read before it is needed.
    local_bytes
        Local memory of a work-group.
    """

    groups: np.ndarray
    count: np.ndarray
    multiply_adds: np.ndarray
    local_traffic: np.ndarray
    global_traffic: np.ndarray
    finish_traffic: np.ndarray
    items: np.ndarray
    registers: np.ndarray
    least_registers: np.ndarray
    local_bytes: np.ndarray

    def resident(self, hardware: Hardware) -> np.ndarray:
        """Work-groups that a compute unit holds at once; 0 where a work-group is too large for the device."""
        held = np.minimum(_REGISTERS // (self.registers * self.items), _UNIT_ITEMS // self.items)
        held = np.minimum(held, _UNIT_LOCAL * hardware.local_bytes // np.maximum(self.local_bytes, 1))
        fits = (self.items <= hardware.max_group_size) & (self.local_bytes <= hardware.local_bytes)
        needed = self.least_registers if hardware.reads_late else self.registers
        return np.where(fits & (needed <= hardware.item_registers), held, 0)

    def rounds(self, hardware: Hardware) -> tuple[np.ndarray, np.ndarray]:
        """Work-groups that a compute unit works on together, and how often one after the other."""
        most = np.ceil(self.groups / hardware.workers)
        together = np.maximum(np.minimum(self.resident(hardware), most), 1)
        return together, np.ceil(most / together)

    def cycles(self, hardware: Hardware) -> np.ndarray:
        """Cycles of the compute unit that has most work-groups; infinite where the device cannot hold one."""
        together, rounds = self.rounds(hardware)
        rates = (
            (self.multiply_adds, _UNIT_LANES),
            (self.local_traffic, _LOCAL_BYTES),
            (self.global_traffic, _GLOBAL_BYTES),
        )
        step = np.max([amount / rate for amount, rate in rates], axis=0)
        busy = np.minimum(1.0, together * self.items / _BUSY_ITEMS)
        each = np.maximum(together * step / busy + _PAUSE, _LATENCY)
        finish = np.where(self.finish_traffic > 0, _MEETING + rounds * self.finish_traffic / _GLOBAL_BYTES, 0)
        return np.where(self.resident(hardware) > 0, _START + rounds * self.count * each + finish, np.inf)


_TILING = (
    *("rows", "columns", "item_rows", "item_columns", "depth", "slices", "parts"),
    *("items", "loads", "early_loads", "local_bytes"),
)


def tiling_columns(tilings: Sequence[Tiling]) -> Columns:
    """What :func:`tile_steps` needs to know of tilings, which takes longer than it takes itself."""
    return {name: np.array([getattr(tiling, name) for tiling in tilings], np.int64) for name in _TILING}


def tile_steps(extents: Extents, tilings: Columns) -> Steps:
    """What the kernels of tilings do for a whole product."""
    rows, columns, item_rows, item_columns, depth, slices, parts, items, loads, early_loads, local_bytes = (
        tilings[name] for name in _TILING
    )
    registers = item_rows * item_columns + LANES * (item_rows + loads) + item_columns + _OTHER_REGISTERS
    blocks = np.ceil(extents.padded_rows / rows) * np.ceil(extents.tiles * TILE / columns)
    return Steps(
        groups=blocks * parts,
        count=np.ceil(extents.taps * np.ceil(extents.span / depth) / (slices * parts)),
        multiply_adds=rows * columns * depth * slices,
        local_traffic=4 * depth * items * (item_rows + item_columns),
        global_traffic=4 * (rows + columns) * depth * slices,
        finish_traffic=np.where(parts > 1, 4 * parts * rows * columns, 0),
        items=items,
        registers=registers,
        least_registers=registers - LANES * early_loads,
        local_bytes=local_bytes,
    )


def reading_steps(extents: Extents, readings: Sequence[Reading]) -> Steps:
    """What the kernels for few rows do for a whole product; the weights of a step are read at once."""
    names = ("columns", "slices", "parts", "items")
    columns, slices, parts, items = (np.array([getattr(one, name) for one in readings], np.int64) for name in names)
    together = LANES * LANES  # steps of the reduction
    registers = np.full_like(columns, 2 * LANES * extents.rows + together * LANES + _OTHER_REGISTERS)
    return Steps(
        groups=extents.tiles * (TILE // columns) * parts,
        count=np.ceil(extents.span / (together * slices * parts)),
        multiply_adds=together * slices * columns * extents.rows,
        local_traffic=np.zeros_like(columns),
        global_traffic=4 * together * slices * (columns + extents.rows),
        finish_traffic=np.where(parts > 1, 4 * parts * extents.rows * columns, 0),
        items=items,
        registers=registers,
        least_registers=registers - (together - 1) * LANES,
        local_bytes=np.array([reading.local_bytes(extents.rows) for reading in readings], np.int64),
    )
