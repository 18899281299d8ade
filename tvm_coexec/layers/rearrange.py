"""Chains of reshapes, transposes and slices become one layer, which puts elements of images or rows in other places."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .base import Base, Size, some_rows
from .registry import register
from .types import tile_channels

Digit = tuple[int, int, int, int]
"""An axis of the output, so many places of it, and the axis of the input that a step from one to the next moves along,
and how far."""


@register
@dataclass(frozen=True)
class Rearrange(Base):
    """Each element of ``output`` is one of ``input`` or, beside that, ``fill``; then follows ``epilogue``.

    Both are sizes ``[batch, h, w, channels]``. An index of an axis of the output, counted from ``starts`` on, is
    written in ``digits``, the first of which counts most. The place in the input is ``offsets`` plus what each digit
    moves it by.
    """

    input: Size
    output: Size
    digits: tuple[Digit, ...]
    offsets: tuple[int, int, int, int] = (0, 0, 0, 0)
    fill: float = 0.0
    starts: tuple[int, int, int, int] = (0, 0, 0, 0)
    epilogue: tuple[str, ...] = ()
    op: ClassVar[str] = "rearrange"
    kernels: ClassVar[str] = "tvm_coexec.schedules.images"
    axis: ClassVar[str] = "channels"

    def __post_init__(self) -> None:
        for name in ("input", "output", "offsets", "starts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "digits", tuple(tuple(digit) for digit in self.digits))
        if min(*self.input, *self.output) < 1:
            raise ValueError(f"sizes of what is rearranged must be at least 1, got {self}")
        for axis, size in enumerate(self.output):
            counted = math.prod(extent for position, extent, _, _ in self.digits if position == axis)
            if not 0 <= self.starts[axis] <= counted - size:
                raise ValueError(f"the digits of axis {axis} of {self} do not count its {size} places")
        super().__post_init__()

    def axis_digits(self, axis: int) -> tuple[Digit, ...]:
        """List the digits of one axis of the output, the first of which counts most."""
        return tuple(digit for digit in self.digits if digit[0] == axis)

    def reach(self, axis: int) -> tuple[int, int]:
        """The first and the last place along an axis of the input that is asked for."""
        moves = [(extent - 1) * step for _, extent, along, step in self.digits if along == axis]
        first = self.offsets[axis]
        return first + sum(min(move, 0) for move in moves), first + sum(max(move, 0) for move in moves)

    def leaves(self, axis: int) -> bool:
        """Whether places beside the input are asked for along an axis."""
        first, last = self.reach(axis)
        return first < 0 or last >= self.input[axis]

    @property
    def run(self) -> int:
        """Channels that follow each other in the input as well, and lie inside it or beside it together."""
        *_, (_, extent, along, step) = ((3, 1, 3, 1), *self.axis_digits(3))
        if (along, step) != (3, 1):
            return 1
        extent = math.gcd(extent, self.starts[3])
        return math.gcd(extent, self.offsets[3], self.input[3]) if self.leaves(3) else extent

    @property
    def only_adds_channels(self) -> bool:
        """Whether the output is the input with channels of zeros behind its own."""
        stays = tuple((axis, size, axis, 1) for axis, size in enumerate(self.output) if size > 1)
        is_still = self.digits == stays and not any((*self.offsets, *self.starts)) and self.input[:3] == self.output[:3]
        return is_still and self.input[3] < self.output[3] and self.fill == 0 and not self.epilogue

    @property
    def channel_local(self) -> bool:
        """Whether channels stay what they are."""
        moved = [digit[1:] for digit in self.digits if digit[1] > 1 and 3 in (digit[0], digit[2])]
        kept = self.input[3] == self.output[3] and self.offsets[3] == 0
        return kept and moved in ([], [(self.output[3], 3, 1)])

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        return (self.input,)

    @property
    def output_size(self) -> Size:
        return self.output

    @property
    def out_channels(self) -> int:
        return self.output[3]

    @property
    def flops(self) -> int:
        return math.prod(self.output)

    @property
    def activation_bytes(self) -> int:
        outputs = math.prod(self.output)
        return self.item_bytes * (
            min(math.prod(self.input), outputs) + outputs * (2 if "residual" in self.epilogue else 1)
        )

    def facts(self) -> dict[str, float]:
        run = math.gcd(tile_channels(self.dtype), self.run)
        return super().facts() | {"output_width": self.output[2], "inputs": 1, "group_channels": run}

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        """Every element from its position, which is computed for the whole output at once."""
        x = operands["input"].astype(np.float64)
        positions = [np.full(self.output, offset) for offset in self.offsets]
        for axis, indices in enumerate(np.indices(self.output)):
            rest = indices + self.starts[axis]
            for _, extent, along, step in reversed(self.axis_digits(axis)):
                positions[along] += rest % extent * step
                rest = rest // extent
        at = list(zip(positions, self.input, strict=True))
        inside = np.all([(position >= 0) & (position < size) for position, size in at], axis=0)
        read = x[tuple(np.clip(position, 0, size - 1) for position, size in at)]
        return some_rows(np.where(inside, read, self.fill), pixels)
