"""Sums whose reduction is divided, among slices of a work-group or among work-groups, and how they become whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from .frame import Operand, where
from .opencl_helpers import arrive, local_barrier
from .product import LANES, lane_of, load_vector, registers

PARTIALS, COUNTERS = "scratch_0", "scratch_counters"
"""Operands between work-groups: sums over parts of the reduction, and how many are there."""


def scratch(parts: int, tiles: int, tile_elements: int) -> tuple[Operand, ...]:
    """What work-groups pass on to the last one of each of so many tiles of the output."""
    if parts == 1:
        return ()
    return Operand(PARTIALS, (parts, tiles, tile_elements)), Operand(COUNTERS, (tiles,), "int32")


@dataclass
class SplitSums:
    """The sums of one work-item, and its index among those who add up the same.

    Parameters
    ----------
    sums
        Its array of sums, whole vectors.
    slices, slice_number
        Into which the work-group's items are divided, and the item's own.
    items, position
        Items of a slice, and the item's index in it.
    is_first
        Whether it is the first item of the work-group.
    """

    sums: Any
    slices: int
    slice_number: Any
    items: int
    position: Any
    is_first: Any

    @property
    def vectors(self) -> int:
        """Vectors of an item's sums."""
        return int(self.sums.shape[0]) // LANES

    def local_vectors(self) -> int:
        """Vectors of local memory that :meth:`add_slices` needs."""
        return self.slices // 2 * self.vectors * self.items

    def add_slices(self, local: Any) -> None:
        """Add the sums of all slices in the first one, halving their number at each step."""
        left = self.slices
        while left > 1:
            # The upper half hands its sums over by local memory, and the lower one adds them to its own.
            left //= 2
            with where(T.And(self.slice_number >= left, self.slice_number < 2 * left)):
                for vector in range(self.vectors):
                    position = ((self.slice_number - left) * self.vectors + vector) * self.items + self.position
                    T.buffer_store(local, load_vector(self.sums, vector * LANES), [position])
            local_barrier()
            with where(self.slice_number < left):
                for vector in range(self.vectors):
                    self._add(vector, local[(self.slice_number * self.vectors + vector) * self.items + self.position])
            if left > 1:
                local_barrier()

    def add_parts(self, buffers: dict[str, Any], parts: int, part: Any, tile: Any, store: Callable[[], None]) -> None:
        """Let the work-group that comes last to a tile of the output add all parts, in their order, and store it."""
        if parts == 1:
            with self._by_first_slice():
                store()
            return
        partials = buffers[PARTIALS]
        with self._by_first_slice():
            for vector in range(self.vectors):
                value = load_vector(self.sums, vector * LANES)
                T.buffer_store(partials, value, [part, tile, vector * self.items + self.position])
        # Nobody knows which part comes last, but it adds them in their order: the result is the same in every run.
        is_last = arrive(buffers[COUNTERS], tile, self.is_first, parts)
        read = registers(self.vectors, "float32x4")
        with where(is_last), self._by_first_slice():
            for number in range(self.vectors * LANES):
                T.buffer_store(self.sums, T.float32(0), [number])
            with T.serial(0, parts) as number:
                for vector in range(self.vectors):
                    T.buffer_store(read, partials[number, tile, vector * self.items + self.position], [vector])
                for vector in range(self.vectors):
                    self._add(vector, read[vector])
        local_barrier()  # PoCL's compiler makes one loop of both over the items, and its masked stores go astray
        with where(is_last), self._by_first_slice():
            store()

    def _add(self, vector: int, summand: Any) -> None:
        for lane in range(LANES):
            position = vector * LANES + lane
            T.buffer_store(self.sums, self.sums[position] + lane_of(summand, lane), [position])

    @contextmanager
    def _by_first_slice(self) -> Iterator[None]:
        with where(self.slice_number == 0 if self.slices > 1 else None):
            yield
