"""Dense products on a GPU whose local memory is ordinary memory, which makes a copy of operands there no gain.

A work-group computes a tile of the output as in :mod:`.tiles`, but its items read both operands from global memory:
those beside each other share lines of the cache. Where tiles are few, work-groups divide the reduction in ``parts``.
GPUs whose texture units have a cache of their own, such as Adreno's, read the weights as an image through that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from tvm_coexec.layers import Variant

from .product import LANES
from .tiles import Tiling

_PARAMETERS = ("rows", "columns", "item_rows", "item_columns", "parts")


@dataclass(frozen=True)
class PlainTiling(Tiling):
    """How the work is divided among work-groups and their items; a step is one vector of the reduction."""

    implementation: ClassVar[str] = "plain_tiles"

    depth: int = LANES

    @classmethod
    def of(cls, variant: Variant) -> Self:
        return cls(**{name: variant[name] for name in _PARAMETERS})

    def variant(self) -> Variant:
        """The variant that the tiling is one of."""
        return Variant.make(self.implementation, **{name: getattr(self, name) for name in _PARAMETERS})

    @property
    def loads(self) -> int:
        """Vectors of weights that an item holds beside those of one element of the reduction."""
        return (LANES - 1) * self.item_columns // LANES

    @property
    def early_loads(self) -> int:
        """All of these, since nothing else depends on when they are read."""
        return self.loads

    @property
    def local_bytes(self) -> int:
        """Local memory of a work-group: a counter, where parts meet."""
        return 4 if self.parts > 1 else 0


@dataclass(frozen=True)
class ImageTiling(PlainTiling):
    """The same for weights that are read as an image."""

    implementation: ClassVar[str] = "image_tiles"
