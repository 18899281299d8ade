"""Operators that no family of kernels knows: what Relax makes of them runs whole, on the CPU alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from .base import Base, Size
from .registry import register
from .types import item_bytes


@dataclass(frozen=True)
class Operand:
    """A tensor as the operator sees it, and how it lies in the network.

    Attributes
    ----------
    shape, dtype
        As the operator sees them.
    size
        Rows and channels in the network, or batch, height, width and channels of an image.
    channels_first
        The elements of ``shape`` are in the order batch, channels, pixels, while channels come last in the network.
    batch
        Product of the axes before the channels, if ``channels_first``.
    """

    shape: tuple[int, ...]
    size: Size
    dtype: str = "float32"
    channels_first: bool = False
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("shape", "size"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if math.prod(self.shape) != math.prod(self.size) or min(self.size, default=0) < 1:
            raise ValueError(f"a tensor of shape {self.shape} cannot lie as {self.size} in the network")
        if self.channels_first and self.rows % self.batch:
            raise ValueError(f"{self.rows} rows cannot be those of {self.batch} equal images")

    @property
    def rows(self) -> int:
        return math.prod(self.size[:-1])

    @property
    def is_reordered(self) -> bool:
        """Whether the operator sees the elements in another order than the network."""
        return self.channels_first and self.rows > self.batch and self.size[-1] > 1


@register
@dataclass(frozen=True)
class Opaque(Base):
    """One Relax operator, or a few of them in a row, on tensors of any type.

    Attributes
    ----------
    operator
        What users and errors call it.
    program
        The text of a Relax module whose function ``main`` takes the ``inputs``, then the ``constants``.
    inputs, output
        The activations.
    constants
        Shape and type of each constant operand.
    """

    operator: str
    program: str = field(repr=False)  # of many lines
    inputs: tuple[Operand, ...]
    output: Operand
    constants: tuple[tuple[tuple[int, ...], str], ...] = ()
    op: ClassVar[str] = "opaque"
    kernels: ClassVar[str] = "tvm_coexec.schedules.opaque"
    axis: ClassVar[str] = "rows"
    channel_local: ClassVar[bool] = False
    epilogue: ClassVar[tuple[str, ...]] = ()
    units: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "inputs", tuple(map(_operand, self.inputs)))
        object.__setattr__(self, "output", _operand(self.output))
        constants = tuple((tuple(shape), dtype) for shape, dtype in self.constants)
        object.__setattr__(self, "constants", constants)
        if not self.inputs:
            raise ValueError(f"{self.operator} reads no activation; what it computes is a constant")

    def lying_as(self, input_sizes: Sequence[Size], output_size: Size) -> Opaque:
        """The same layer on tensors that lie in the network in another way."""
        inputs = [replace(operand, size=size) for operand, size in zip(self.inputs, input_sizes, strict=True)]
        return replace(self, inputs=tuple(inputs), output=replace(self.output, size=output_size))

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        return tuple(operand.size for operand in self.inputs)

    @property
    def output_size(self) -> Size:
        return self.output.size

    @property
    def out_channels(self) -> int:
        return self.output.size[-1]

    @property
    def flops(self) -> int:
        """One is counted for each element of the result: what the operator does with it is not known."""
        return math.prod(self.output.shape)

    @property
    def weight_bytes(self) -> int:
        sizes = [math.prod(shape) * item_bytes(dtype) for shape, dtype in self.constants]
        if "R.take(" in self.program:
            # of a table no more is read than is looked up
            looked_up = math.prod(self.output.shape) * item_bytes(self.output.dtype)
            sizes = [min(size, looked_up) for size in sizes]
        return sum(sizes)

    @property
    def activation_bytes(self) -> int:
        operands = (*self.inputs, self.output)
        return sum(math.prod(operand.shape) * item_bytes(operand.dtype) for operand in operands)

    @property
    def input_dtypes(self) -> tuple[str, ...]:
        return tuple(operand.dtype for operand in self.inputs)

    @property
    def output_dtype(self) -> str:
        return self.output.dtype

    def own_parameters(self) -> dict[str, tuple[int, ...]]:
        return {constant_name(index): shape for index, (shape, _) in enumerate(self.constants)}

    def parameter_dtype(self, name: str) -> str:
        return {constant_name(index): dtype for index, (_, dtype) in enumerate(self.constants)}[name]

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        raise NotImplementedError(f"what {self.operator} computes is not known here")


def constant_name(index: int) -> str:
    """Name of a constant operand among a node's parameters and a kernel's operands."""
    return f"constant{index}"


def _operand(value: Operand | Mapping[str, Any]) -> Operand:
    return value if isinstance(value, Operand) else Operand(**value)
