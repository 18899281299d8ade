"""Dense products on a GPU with local memory: a work-group computes a tile of the output.

Both operands pass through local memory in chunks of the reduction, two chunks deep: while the products of one are added
up, the next one is loaded. A work-item keeps a register tile of sums. Where tiles are few, the reduction is divided
too: among ``slices`` of a work-group, and among work-groups in ``parts``, whose sums the last one to arrive adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from tvm_coexec.layers import TILE, Variant

from .dispatch import Dispatch
from .product import LANES, Extents


@dataclass(frozen=True)
class Tiling:
    """How the work is divided among work-groups and their items.

    Parameters
    ----------
    rows, columns
        Size of a work-group's tile; columns are channels.
    item_rows, item_columns
        Size of a work-item's register tile.
    depth
        Steps of the reduction in a chunk.
    slices, parts
        How many share the reduction: within a work-group, and among work-groups.
    """

    implementation: ClassVar[str] = "tiles"

    rows: int
    columns: int
    item_rows: int
    item_columns: int
    depth: int
    slices: int = 1
    parts: int = 1

    @classmethod
    def of(cls, variant: Variant) -> Self:
        names = ("rows", "columns", "item_rows", "item_columns", "depth", "slices", "parts")
        return cls(*(variant[name] for name in names))

    def variant(self) -> Variant:
        """The variant that the tiling is one of."""
        return Variant.make(self.implementation, **self.__dict__)

    @property
    def items_across(self) -> int:
        return self.columns // self.item_columns

    @property
    def items_down(self) -> int:
        return self.rows // self.item_rows

    @property
    def slice_items(self) -> int:
        return self.items_across * self.items_down

    @property
    def items(self) -> int:
        """Work-items of a group."""
        return self.slice_items * self.slices

    @property
    def input_vectors(self) -> int:
        """Vectors of a chunk of the input."""
        return self.rows * self.depth // LANES

    @property
    def weight_vectors(self) -> int:
        """Vectors of a chunk of the weights."""
        return self.columns * self.depth // LANES

    @property
    def input_loads(self) -> int:
        """Vectors of the input's chunk that an item loads."""
        return -(-self.input_vectors // self.slice_items)

    @property
    def weight_loads(self) -> int:
        return -(-self.weight_vectors // self.slice_items)

    @property
    def loads(self) -> int:
        """Vectors of a chunk that an item loads."""
        return self.input_loads + self.weight_loads

    @property
    def early_loads(self) -> int:
        """Those of them that a compiler may put off until they are needed: none, since products are added meanwhile."""
        return 0

    @property
    def stage_vectors(self) -> int:
        """Vectors of local memory that a slice's chunk takes; a row of the input has one more than it needs."""
        return self.input_vectors + self.rows + self.weight_vectors

    @property
    def local_vectors(self) -> int:
        """Vectors of local memory of a work-group, in which its slices' sums are added at the end."""
        return max(2 * self.slices * self.stage_vectors, self.slices // 2 * self.rows * self.columns // LANES)

    @property
    def local_bytes(self) -> int:
        """Local memory of a work-group."""
        return 16 * self.local_vectors + (4 if self.parts > 1 else 0)

    def chunks(self, extents: Extents) -> int:
        """Chunks of the reduction; none has steps of two runs."""
        return extents.taps * -(-extents.span // self.depth)

    def row_blocks(self, extents: Extents) -> int:
        return -(-extents.padded_rows // self.rows)

    def column_blocks(self, extents: Extents) -> int:
        return -(-extents.tiles * TILE // self.columns)

    def dispatch(self, extents: Extents) -> Dispatch:
        """Launch geometry of a half."""
        if extents.unit_rows is None:
            grid, axis, together = (1, self.row_blocks(extents) * self.parts), 0, self.columns // TILE
        else:
            grid, axis, together = (self.column_blocks(extents) * self.parts, extents.unit_rows), 1, self.rows
        return Dispatch(grid, (self.items, 1), axis, self.row_blocks(extents) * self.rows, together)
