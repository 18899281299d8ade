"""Form layers that move elements: what chains of reshapes, transposes and slices leave, padding and resizing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.patterns.moves import Moved, merged
from tvm_coexec.frontends.trace import Operation, Source
from tvm_coexec.graph.graph import Image
from tvm_coexec.layers import Rearrange, Resize

from .drafts import Draft, DraftTensor, trailing_axes
from .values import NO_PADDING, Value

if TYPE_CHECKING:
    from .fuser import Fuser

VIEWS = ("cut", "reshape", "slice", "transpose")
"""Operations that keep some elements of a value and make no others."""


@dataclass(frozen=True)
class Root:
    """A tensor in the order of elements in which the model sees it.

    Attributes
    ----------
    shape
        Axes each of which is one of those of ``size``.
    positions
        For each of them, which one of ``size`` it is.
    size
        The tensor as an image: rows are the lines of one that is a pixel wide.
    """

    tensor: DraftTensor
    shape: tuple[int, ...]
    positions: tuple[int, ...]
    size: Image

    @classmethod
    def of(cls, value: Value, source: Source) -> Root | None:
        """What a value shows; None if its elements are in an order that no axes tell."""
        tensor, channels, rows = value.tensor, value.tensor.channels, value.tensor.rows
        if not value.channels_last and tensor.image is None and len(value.shape) == 4 and value.has_channels_at(1):
            value.read_as_image(source)
        if tensor.image is None:
            if value.channels_last:
                return cls(tensor, (rows, channels), (1, 3), (1, rows, 1, channels))
            pixels = rows // value.batch
            return cls(tensor, (value.batch, channels, pixels), (0, 3, 1), (value.batch, pixels, 1, channels))
        batch, h, w, _ = tensor.image
        if value.channels_last:
            return cls(tensor, tensor.image, (0, 1, 2, 3), tensor.image)
        return cls(tensor, (batch, channels, h, w), (0, 3, 1, 2), tensor.image) if batch == value.batch else None

    @property
    def is_channels_first(self) -> bool:
        return self.positions == (0, 3, 1, 2)


@dataclass(frozen=True)
class Waiting:
    """A value that no layer has made yet, since more may happen to where its elements are."""

    root: Root
    moved: Moved
    source: Source


def add(fuser: Fuser, operation: Operation) -> bool:
    """Form the layer of an operation, if it resizes, or pads with more than zeros around an image."""
    if operation.op == "resize":
        add_resized(fuser, operation)
    elif "before" in operation.attributes:
        add_padding(fuser, operation)
    else:
        return False
    return True


def put_off(fuser: Fuser, operation: Operation) -> bool:
    """Let a view of a value wait for what follows; False if its elements are in no places that digits tell."""
    if operation.op not in VIEWS:
        return False
    value = fuser.materialised(operation.inputs[0], operation.source)
    root = Root.of(value, operation.source) if value.tensor.dtype == "float32" else None
    if root is None:
        return False
    seen = Moved.of(root.shape).reshaped(value.shape)
    moved = seen and seen.after(operation, fuser.trace.shapes[operation.output])
    if moved is None:
        return False
    fuser.waiting[operation.output] = Waiting(root, moved, operation.source)
    return True


def go_on(fuser: Fuser, operation: Operation) -> bool:
    """Let a view of what waits wait, too; before anything else, let a layer make what waits."""
    waiting = [name for name in dict.fromkeys(operation.inputs) if name in fuser.waiting]
    if waiting and operation.op in VIEWS:
        before = fuser.waiting[waiting[0]]
        moved = before.moved.after(operation, fuser.trace.shapes[operation.output])
        if moved is not None:
            fuser.waiting[operation.output] = Waiting(before.root, moved, operation.source)
            return True
    for name in waiting:
        settle(fuser, name)
    return False


def settle(fuser: Fuser, name: str) -> None:
    """Let a layer make a value that waits."""
    waiting = fuser.waiting.pop(name)
    add_moved(fuser, name, waiting.root, waiting.moved, waiting.source)


def add_padding(fuser: Fuser, operation: Operation) -> None:
    """Constants around a value, along any of its axes."""
    attributes = operation.attributes
    root = _root(fuser, operation, operation.inputs[0])
    if len(attributes["before"]) != len(root.shape):
        raise ModelError(f"{operation.source} pads {len(attributes['before'])} axes of {len(root.shape)}")
    moved = Moved.of(root.shape).padded(attributes["before"], attributes["after"])
    add_moved(fuser, operation.output, root, moved, operation.source, attributes["value"])


def add_joined(fuser: Fuser, operation: Operation) -> None:
    """A concatenation along any axis: each operand is put to its place among zeros, and added to those before."""
    source, axis = operation.source, operation.attributes["axis"]
    if len(operation.inputs) > _MOST_JOINED:
        raise ModelError(f"{source} joins {len(operation.inputs)} activations, each of which would be written anew")
    shape = fuser.trace.shapes[operation.output]
    first, last = 0, None
    for name in operation.inputs:
        root = _root(fuser, operation, name)
        before, after = [0] * len(shape), [0] * len(shape)
        before[axis], after[axis] = first, shape[axis] - first - root.shape[axis]
        moved = Moved.of(root.shape).padded(tuple(before), tuple(after))
        first += root.shape[axis]
        tensor, seen = _result(fuser, operation.output, root, moved)
        draft = _append(fuser, root, seen, tensor, source)
        if last is not None:
            draft.residual = last
            draft.append("residual")
        last = tensor
    assert last is not None
    fuser.values[operation.output] = Value(last, shape, last.image[0] if last.image else last.rows)


_MOST_JOINED = 3
"""Operands of a concatenation up to which it pays to write the whole for each."""


def add_resized(fuser: Fuser, operation: Operation) -> None:
    """An image whose lines and columns are repeated, or interpolated."""
    source, attributes = operation.source, operation.attributes
    if "factors" in attributes:
        root = _root(fuser, operation, operation.inputs[0])
        add_moved(fuser, operation.output, root, Moved.of(root.shape).repeated(attributes["factors"]), source)
        return
    value = with_channels_second(fuser, fuser.materialised(operation.inputs[0], source), source)
    image = value.read_as_image(source)
    shape = fuser.trace.shapes[operation.output]
    layer = Resize(image, shape[2], shape[3], attributes["scale"], attributes["shift"])
    draft = fuser.new_draft(layer, value.tensor, shape, image[3], source)
    draft.output.name, draft.output.image = operation.output, (image[0], shape[2], shape[3], image[3])
    fuser.values[operation.output] = Value(draft.output, shape, image[0])


def _root(fuser: Fuser, operation: Operation, name: str) -> Root:
    """What an operation reads, in the very shape in which the model sees it."""
    value = fuser.materialised(name, operation.source)
    tensor, shape = value.tensor, value.shape
    first = 4 - len(shape)
    if tensor.image is None and value.channels_last and first >= 0 and value.has_channels_at(len(shape) - 1):
        batch, h, w, channels = (*(1,) * first, *shape)
        return Root(tensor, shape, tuple(range(first, 4)), (batch, h, w, channels))
    root = Root.of(value, operation.source)
    if root is None or root.shape != value.shape:
        raise ModelError(f"{operation.source} reads shape {list(value.shape)}, of which no axis has the channels alone")
    return root


def with_channels_second(fuser: Fuser, value: Value, source: Source) -> Value:
    """A value ``[batch, channels, …]`` whose tensor has these channels: the value itself, or of a copy."""
    is_single = value.tensor.channels == 1 and value.shape[1:2] == (1,)
    if value.has_channels_at(1) or is_single or value.padding != NO_PADDING or len(value.shape) not in (3, 4):
        return value
    value = fuser.settled(value)
    root = Root.of(value, source)
    moved = None if root is None else Moved.of(root.shape).reshaped(value.shape)
    if root is None or moved is None:
        return value
    batch, channels, *pixels = value.shape
    h, w = (*(1,) * (2 - len(pixels)), *pixels)
    image = (batch, h, w, channels)
    seen = moved.reshaped((batch, channels, h, w))
    assert seen is not None
    tensor = DraftTensor(f"{value.tensor.name}/image", (batch, channels, h, w), channels, image=image)
    _append(fuser, root, seen, tensor, source)
    return Value(tensor, value.shape, batch)


def add_moved(fuser: Fuser, name: str, root: Root, moved: Moved, source: Source, fill: float = 0.0) -> None:
    """A layer that makes a value of a root's elements."""
    tensor, seen = _result(fuser, name, root, moved)
    _append(fuser, root, seen, tensor, source, fill)
    fuser.values[name] = Value(tensor, fuser.trace.shapes[name], tensor.image[0] if tensor.image else tensor.rows)


def _append(fuser: Fuser, root: Root, seen: Moved, tensor: DraftTensor, source: Source, fill: float = 0.0) -> Draft:
    """The layer that makes a tensor, in the shape in which the model sees it, of a root's elements."""
    output = tensor.image or (1, tensor.rows, 1, tensor.channels)
    axes: list[tuple[int, ...]] = [(0,), (2,), (3,), (1,)]
    if tensor.image is None:
        first = len(seen.shape) - (trailing_axes(seen.shape, tensor.channels) or 0)
        axes = [(), tuple(range(first)), (), tuple(range(first, len(seen.shape)))]
    digits = tuple(
        (position, extent, root.positions[along], step)
        for position, group in enumerate(axes)
        for extent, along, step in merged(digit for axis in group for digit in seen.axes[axis])
    )
    offsets = dict(zip(root.positions, seen.offsets, strict=True))
    batch, h, w, channels = (offsets.get(position, 0) for position in range(4))
    layer = Rearrange(root.size, output, digits, (batch, h, w, channels), fill)
    draft = fuser.new_draft(layer, root.tensor, tensor.shape, tensor.channels, source)
    draft.output, tensor.producer = tensor, draft
    return draft


def _result(fuser: Fuser, name: str, root: Root, moved: Moved) -> tuple[DraftTensor, Moved]:
    """The tensor that is made, and the value in the shape in which the tensor is seen.

    It is an image if its readers take it as one, or if it is made of one; rows otherwise.
    """
    tensor = fuser.readers.tensor(name)
    tensor.channels_first = False
    shape = tensor.shape
    if tensor.image is None and len(shape) == 4 and root.is_channels_first:
        tensor = DraftTensor(name, shape, shape[1], image=(shape[0], shape[2], shape[3], shape[1]))
    if tensor.image is not None:
        batch, h, w, channels = tensor.image
        seen = moved.reshaped((batch, channels, h, w))
        if seen is not None:
            return tensor, seen
        tensor = DraftTensor(name, shape, shape[-1])
    return tensor, moved
