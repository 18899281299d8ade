"""The layers of the product's own families have these types."""

from __future__ import annotations

from .attention import Attention, PlaceRows
from .dense import Conv2d, Linear
from .images import Concat, Elementwise, LocalNorm, Pool
from .matmul import MatMul
from .opaque import Opaque
from .rearrange import Rearrange
from .resize import Resize
from .rowwise import RowWise

PixelLayer = Pool | LocalNorm | Concat | Elementwise | Rearrange | Resize
"""Layers that have no weights and work on the pixels of images."""

ImageLayer = Conv2d | PixelLayer
"""Layers that know of halos; of the others Opaque does too, and all but it see the pixels of an image as rows."""

AnyLayer = Linear | RowWise | ImageLayer | Attention | MatMul | PlaceRows | Opaque
