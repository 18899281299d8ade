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

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
"""Activations that an epilogue may hold; ``gelu`` is the erf form."""

EPILOGUE_STEPS = ("bias", "residual", *ACTIVATIONS)


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


_LAYERS: dict[str, type[Linear] | type[RowWise]] = {cls.op: cls for cls in (Linear, RowWise)}


def layer_to_json(layer: Layer) -> dict[str, Any]:
    """Describe a layer by plain values, ``op`` first."""
    fields = dataclasses.asdict(layer)  # type: ignore[call-overload]
    fields["epilogue"] = list(fields["epilogue"])
    return {"op": layer.op, **fields}


def layer_from_json(fields: Mapping[str, Any]) -> Linear | RowWise:
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
