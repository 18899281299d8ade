"""Elements of a value are followed to where they come from, through chains of reshapes, transposes and slices."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tvm_coexec.frontends.trace import Operation

Digit = tuple[int, int, int]
"""So many places, and along which axis of the root, and how far, each lies behind the one before."""


@dataclass(frozen=True)
class Moved:
    """A value whose elements are those of another one, its root.

    Attributes
    ----------
    axes
        The digits of an index along each axis, the first of which counts most.
    offsets
        Where along each axis of the root the first element lies.
    """

    axes: tuple[tuple[Digit, ...], ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Moved:
        """Begin at the root itself."""
        return cls(tuple(((size, axis, 1),) for axis, size in enumerate(shape)), (0,) * len(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(extent for extent, _, _ in digits) for digits in self.axes)

    def reshaped(self, shape: tuple[int, ...]) -> Moved | None:
        """The same elements in the same order; None if an axis would have parts of digits."""
        left = [digit for digits in self.axes for digit in digits if digit[0] > 1]
        axes: list[tuple[Digit, ...]] = []
        for size in reversed(shape):
            digits: list[Digit] = []
            wanted = size
            while wanted > 1:
                extent, along, step = left.pop()
                if wanted % extent and extent % wanted:
                    return None
                if wanted < extent:
                    left.append((extent // wanted, along, step * wanted))
                    extent = wanted
                digits.append((extent, along, step))
                wanted //= extent
            axes.append(merged(reversed(digits)))
        return replace(self, axes=tuple(reversed(axes)))

    def transposed(self, axes: tuple[int, ...]) -> Moved:
        return replace(self, axes=tuple(self.axes[axis] for axis in axes))

    def cut(self, axis: int, begin: int, count: int, stride: int = 1) -> Moved | None:
        """Take some indices along an axis; None if they are not whole ones of a digit."""
        digits = merged(self.axes[axis])
        behind = math.prod(extent for extent, _, _ in digits[1:])
        if len(digits) > 1 and (stride != 1 or begin % behind or count % behind):
            return None
        first, along, step = digits[0] if digits else (1, 0, 0)
        offsets = list(self.offsets)
        offsets[along : along + 1] = [offsets[along] + begin // behind * step] if digits else offsets[along : along + 1]
        kept = ((count // behind, along, step * stride), *digits[1:]) if first > 1 else digits
        return replace(self, axes=(*self.axes[:axis], kept, *self.axes[axis + 1 :]), offsets=tuple(offsets))

    def padded(self, before: tuple[int, ...], after: tuple[int, ...]) -> Moved:
        """Give the root with places beside it along each axis."""
        sizes = zip(self.shape, before, after, strict=True)
        axes = tuple(((size + first + last, axis, 1),) for axis, (size, first, last) in enumerate(sizes))
        return Moved(axes, tuple(-first for first in before))

    def repeated(self, factors: tuple[int, ...]) -> Moved:
        """Take each index of an axis so many times."""
        axes = zip(self.axes, factors, strict=True)
        return replace(self, axes=tuple((*digits, (factor, 0, 0)) for digits, factor in axes))

    def after(self, operation: Operation, shape: tuple[int, ...]) -> Moved | None:
        """What an operation of that result makes of the value; None if it makes new elements."""
        if operation.op == "reshape":
            return self.reshaped(shape)
        if operation.op == "transpose":
            return self.transposed(operation.attributes["axes"])
        if operation.op == "slice":
            cut = self.cut(*(operation.attributes[name] for name in ("axis", "begin", "count")))
            return cut and cut.reshaped(shape)
        moved: Moved | None = self if operation.op == "cut" else None
        for axis, begin, stride in operation.attributes.get("cuts", ()):
            moved = moved and moved.cut(axis, begin, shape[axis], stride)
        return moved


def merged(digits: Iterable[Digit]) -> tuple[Digit, ...]:
    """Digits put together where one goes on as the next does; those of a single place left out."""
    kept: list[Digit] = []
    for extent, along, step in digits:
        if extent == 1:
            continue
        if kept and kept[-1][1:] == (along, step * extent) and step:
            kept[-1] = (kept[-1][0] * extent, along, step)
        else:
            kept.append((extent, along, step))
    return tuple(kept)
