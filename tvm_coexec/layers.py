"""The vocabulary that every stage shares: a layer, how its work is divided, and a variant of a kernel.

A layer's work is divided in *units*. For a dense layer a unit is a tile of 32 output channels; for a
row-wise operator it is a block of 8 rows. The GPU computes units ``[0, g)``, the CPU ``[g, units)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

TILE = 32
"""Output channels in a tile: 128 bytes of float32, so that two processors never write one cache line."""

ROW_BLOCK = 8
"""Rows in a unit of a row-wise operator."""

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "relu6", "hard_swish", "sigmoid")
"""Activations that an epilogue may hold; ``gelu`` is the erf form."""

EPILOGUE_STEPS = ("bias", "residual", *ACTIVATIONS)


SCRATCH = "scratch_"
"""How the names of operands begin that only pass something on from one kernel of a half to its next."""


def tile_count(channels: int) -> int:
    """Tiles that hold ``channels`` output channels."""
    return -(-channels // TILE)


def row_tiles(channels: int) -> int:
    """Tiles from one row of an activation to the next, in memory.

    Rows whose distance is a multiple of 2 KiB fall into few cache sets, so such rows get one tile of padding.
    """
    tiles = tile_count(channels)
    return tiles + 1 if tiles % 16 == 0 else tiles


class Layer(Protocol):
    """What planning and measuring need to know of any layer."""

    op: ClassVar[str]

    @property
    def epilogue(self) -> tuple[str, ...]:
        """Steps applied to the result, in order."""

    @property
    def units(self) -> int:
        """Parts that a split counts in."""

    @property
    def flops(self) -> int:
        """Floating-point operations of the whole layer, epilogue left out."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of constant operands that one run reads."""

    @property
    def activation_bytes(self) -> int:
        """Bytes of activations that one run reads and writes."""


def check_epilogue(epilogue: tuple[str, ...]) -> None:
    """Refuse steps that no kernel knows, and a second operand of the same name."""
    for step in epilogue:
        if step not in EPILOGUE_STEPS:
            raise ValueError(f"unknown epilogue step {step!r}; known: {', '.join(EPILOGUE_STEPS)}")
    for operand in ("bias", "residual"):
        if epilogue.count(operand) > 1:
            raise ValueError(f"epilogue {epilogue} names {operand!r} twice; a kernel takes one")


@dataclass(frozen=True)
class Linear:
    """``[m, k] × [k, n]`` followed by the steps of ``epilogue``, in order."""

    m: int
    k: int
    n: int
    epilogue: tuple[str, ...] = ()
    op: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        if min(self.m, self.k, self.n) < 1:
            raise ValueError(f"linear sizes must be at least 1, got m={self.m}, k={self.k}, n={self.n}")
        check_epilogue(self.epilogue)

    @property
    def units(self) -> int:
        return tile_count(self.n)

    @property
    def flops(self) -> int:
        return 2 * self.m * self.k * self.n

    @property
    def weight_bytes(self) -> int:
        return 4 * self.k * self.n

    @property
    def activation_bytes(self) -> int:
        return 4 * self.m * (self.k + self.n * (2 if "residual" in self.epilogue else 1))


@dataclass(frozen=True)
class RowWise:
    """An operator whose rows do not depend on each other: ``[m, n] → [m, n]``, then ``epilogue``.

    ``kind`` is ``layer_norm``, ``softmax`` or ``map`` (the epilogue alone).
    """

    kind: str
    m: int
    n: int
    epilogue: tuple[str, ...] = ()
    epsilon: float = 0.0
    op: ClassVar[str] = "rowwise"

    KINDS: ClassVar[tuple[str, ...]] = ("layer_norm", "softmax", "map")

    def __post_init__(self) -> None:
        if self.kind not in self.KINDS:
            raise ValueError(f"unknown row-wise kind {self.kind!r}; known: {', '.join(self.KINDS)}")
        check_epilogue(self.epilogue)

    @property
    def units(self) -> int:
        return -(-self.m // ROW_BLOCK)

    @property
    def flops(self) -> int:
        return 8 * self.m * self.n

    @property
    def weight_bytes(self) -> int:
        return 8 * self.n if self.kind == "layer_norm" else 0

    @property
    def activation_bytes(self) -> int:
        return 4 * self.m * self.n * (3 if "residual" in self.epilogue else 2)


@dataclass(frozen=True)
class Conv2d:
    """A convolution of ``[batch, h, w, in_channels]``, followed by the steps of ``epilogue``, in order.

    ``kernel``, ``stride``, ``dilation`` and ``padding`` may be given as one number or as a pair (height, width), the
    padding also as (top, left, bottom, right); they are kept as pairs, the padding as four numbers.
    """

    h: int
    w: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    batch: int = 1
    epilogue: tuple[str, ...] = ()
    op: ClassVar[str] = "conv2d"

    def __post_init__(self) -> None:
        for name, length in (("kernel", 2), ("stride", 2), ("dilation", 2), ("padding", 4)):
            object.__setattr__(self, name, _extents(name, getattr(self, name), length))
        sizes = (self.h, self.w, self.in_channels, self.out_channels, self.groups, self.batch)
        if min(*sizes, *self.kernel, *self.stride, *self.dilation) < 1 or min(self.padding) < 0:
            raise ValueError(f"convolution sizes must be at least 1 and paddings at least 0, got {self}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"{self.groups} groups do not divide {self.in_channels} input and {self.out_channels} output channels"
            )
        if min(self.out_h, self.out_w) < 1:
            raise ValueError(f"a {self.kernel} kernel does not fit into {self.h}×{self.w} pixels with {self.padding}")
        check_epilogue(self.epilogue)

    def _out(self, size: int, axis: int) -> int:
        padded = size + self.padding[axis] + self.padding[axis + 2]
        return (padded - self.dilation[axis] * (self.kernel[axis] - 1) - 1) // self.stride[axis] + 1

    @property
    def out_h(self) -> int:
        return self._out(self.h, 0)

    @property
    def out_w(self) -> int:
        return self._out(self.w, 1)

    @property
    def taps(self) -> int:
        """Products that are added up for one output element."""
        return self.kernel[0] * self.kernel[1] * (self.in_channels // self.groups)

    @property
    def units(self) -> int:
        return tile_count(self.out_channels)

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.out_h * self.out_w * self.out_channels * self.taps

    @property
    def weight_bytes(self) -> int:
        return 4 * self.out_channels * self.taps

    @property
    def activation_bytes(self) -> int:
        outputs = self.out_h * self.out_w * self.out_channels * (2 if "residual" in self.epilogue else 1)
        return 4 * self.batch * (self.h * self.w * self.in_channels + outputs)


def _extents(name: str, value: Any, length: int) -> tuple[int, ...]:
    """One number, a pair or, for a length of four, four numbers as ``length`` numbers."""
    numbers = (value, value) if isinstance(value, int) else tuple(value)
    if len(numbers) not in (2, length):
        raise ValueError(f"{name} {value} of a convolution is neither one number nor {length}")
    return numbers * (length // len(numbers))


MAX_NARROW = 4
"""Channels up to which an image that no kernel writes, a network's input, is kept without padding channels."""


@dataclass(frozen=True)
class ImageLayout:
    """How an image lies in memory: ``[batch, h + 2·halo, w + 2·halo, pixel]``.

    The halo, of so many pixels above and below, left and right, holds zeros: a convolution reads it as its padding,
    and no kernel writes it. A pixel holds ``row_tiles`` tiles, or in a ``narrow`` image its channels alone.
    """

    halo: tuple[int, int] = (0, 0)
    narrow: bool = False

    def pixel(self, channels: int) -> int:
        """Elements from one pixel to the next."""
        return channels if self.narrow else row_tiles(channels) * TILE


@dataclass(frozen=True)
class ImageLayouts:
    """The layouts of the images that a convolution reads and writes."""

    input: ImageLayout = ImageLayout()
    output: ImageLayout = ImageLayout()
    residual: ImageLayout = ImageLayout()

    @classmethod
    def alone(cls, layer: Conv2d) -> ImageLayouts:
        """Those of a network that consists of this layer."""
        top, left, bottom, right = layer.padding
        return cls(ImageLayout((max(top, bottom), max(left, right)), layer.in_channels <= MAX_NARROW))


AnyLayer = Linear | RowWise | Conv2d

_LAYERS: dict[str, type[Linear] | type[RowWise] | type[Conv2d]] = {cls.op: cls for cls in (Linear, RowWise, Conv2d)}


def layer_to_json(layer: Layer) -> dict[str, Any]:
    """Describe a layer by plain values, ``op`` first."""
    fields = dataclasses.asdict(layer)  # type: ignore[call-overload]
    fields["epilogue"] = list(fields["epilogue"])
    return {"op": layer.op, **fields}


def layer_from_json(fields: Mapping[str, Any]) -> AnyLayer:
    """Inverse of :func:`layer_to_json`; ``epilogue`` may be left out."""
    rest = {key: value for key, value in fields.items() if key != "op"}
    cls = _LAYERS.get(fields.get("op", ""))
    if cls is None:
        raise ValueError(f"unknown layer op {fields.get('op')!r}; known: {', '.join(_LAYERS)}")
    if "epilogue" in rest:
        rest["epilogue"] = tuple(rest["epilogue"])
    try:
        return cls(**rest)
    except TypeError as error:
        raise ValueError(f"cannot read layer {dict(fields)}: {error}") from None


def parameter_shapes(layer: AnyLayer) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's constants, as a model gives them: packed by nobody yet."""
    shapes: dict[str, tuple[int, ...]] = {}
    if isinstance(layer, Linear):
        shapes["weights"] = (layer.k, layer.n)
    elif isinstance(layer, Conv2d):
        shapes["weights"] = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel)
    elif layer.kind == "layer_norm":
        shapes |= {"gamma": (layer.n,), "beta": (layer.n,)}
    if "bias" in layer.epilogue:
        shapes["bias"] = (layer.out_channels if isinstance(layer, Conv2d) else layer.n,)
    return shapes


@dataclass(frozen=True)
class Hardware:
    """What decides which kernels suit a device.

    Parameters
    ----------
    vector_bytes, vector_registers
        Width and number of the CPU's vector registers.
    opencl_type
        ``gpu``, or ``cpu`` where a CPU device plays the GPU and one work-item fills a core.
    max_group_size
        Largest work-group of the OpenCL device.
    """

    vector_bytes: int = 16
    vector_registers: int = 32
    opencl_type: str = "gpu"
    max_group_size: int = 256


@dataclass(frozen=True)
class Variant:
    """One way to compute a half: an implementation and its integer parameters, sorted by name."""

    implementation: str
    params: tuple[tuple[str, int], ...] = ()

    @classmethod
    def make(cls, implementation: str, **params: int) -> Variant:
        return cls(implementation, tuple(sorted(params.items())))

    def __getitem__(self, name: str) -> int:
        return dict(self.params)[name]

    def to_json(self) -> dict[str, Any]:
        return {"implementation": self.implementation, **dict(self.params)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Variant:
        rest = {key: int(value) for key, value in fields.items() if key != "implementation"}
        return cls.make(fields["implementation"], **rest)

    def __str__(self) -> str:
        return " ".join([self.implementation, *(f"{name}={value}" for name, value in self.params)])
