"""Dense products of few rows on a GPU: the items of a work-group divide the reduction, and weights are read once."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_coexec.layers import TILE, Variant

from .dispatch import Dispatch
from .product import LANES, Extents

IMPLEMENTATION = "few_rows"
MAX_ROWS = 16
"""Rows up to which a work-item keeps the sums of all."""


@dataclass(frozen=True)
class Reading:
    """How the reduction is divided.

    Parameters
    ----------
    columns
        Channels of a work-group, at most those of a tile; an item has four.
    slices, parts
        How many share the reduction: within a work-group, and among work-groups.
    """

    columns: int
    slices: int
    parts: int = 1

    @classmethod
    def of(cls, variant: Variant) -> Reading:
        return cls(variant["columns"], variant["slices"], variant["parts"])

    def variant(self) -> Variant:
        """The variant that this is one of."""
        return Variant.make(IMPLEMENTATION, **self.__dict__)

    @property
    def slice_items(self) -> int:
        return self.columns // LANES

    @property
    def items(self) -> int:
        """Work-items of a group."""
        return self.slice_items * self.slices

    def local_bytes(self, rows: int) -> int:
        """Count the bytes of local memory of a work-group."""
        return self.slices // 2 * rows * self.columns * 4 + (16 if self.parts > 1 else 0)

    def steps(self, reduction: int) -> int:
        """Count the vectors of the reduction that an item multiplies, one after the other."""
        return -(-reduction // (LANES * self.slices * self.parts))

    def dispatch(self, extents: Extents) -> Dispatch:
        """Launch geometry of a half."""
        return Dispatch((TILE // self.columns, self.parts), (self.items, 1), unit_axis=0, padded_rows=extents.rows)
