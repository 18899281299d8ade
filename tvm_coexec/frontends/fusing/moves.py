"""Form layers that move elements: what chains of reshapes, transposes and slices leave, padding and resizing."""

from __future__ import annotations

import math

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.patterns.moves import Moved, merged
from tvm_coexec.frontends.trace import Operation, Source
from tvm_coexec.layers import Rearrange, Resize

from .drafts import Draft, DraftTensor, trailing_axes
from .state import State
from .values import NO_PADDING, Value
from .waiting import Root, Waiting

VIEWS = ("cut", "reshape", "slice", "transpose")
"""Operations that keep some elements of a value and make no others."""


def add(state: State, operation: Operation) -> bool:
    """Form the layer of an operation, if it resizes, or pads with more than zeros around an image."""
    if operation.op == "resize":
        add_resized(state, operation)
    elif "before" in operation.attributes:
        add_padding(state, operation)
    else:
        return False
    return True


def put_off(state: State, operation: Operation) -> bool:
    """Let a view of a value wait for what follows; False if its elements are in no places that digits tell."""
    if operation.op not in VIEWS:
        return False
    value = state.materialised(operation.inputs[0], operation.source)
    root = Root.of(value, operation.source) if value.tensor.dtype == "float32" else None
    if root is None:
        return False
    seen = Moved.of(root.shape).reshaped(value.shape)
    moved = seen and seen.after(operation, state.trace.shapes[operation.output])
    if moved is None:
        return False
    state.waiting[operation.output] = Waiting(root, moved, operation.source)
    return True


def go_on(state: State, operation: Operation) -> bool:
    """Let a view of what waits wait, too; before anything else, let a layer make what waits."""
    waiting = [name for name in dict.fromkeys(operation.inputs) if name in state.waiting]
    if waiting and operation.op in VIEWS:
        before = state.waiting[waiting[0]]
        moved = before.moved.after(operation, state.trace.shapes[operation.output])
        if moved is not None:
            state.waiting[operation.output] = Waiting(before.root, moved, operation.source)
            return True
    for name in waiting:
        settle(state, name)
    return False


def settle(state: State, name: str) -> None:
    """Let a layer make a value that waits."""
    waiting = state.waiting.pop(name)
    add_moved(state, name, waiting.root, waiting.moved, waiting.source)


def add_padding(state: State, operation: Operation) -> None:
    """Add constants around a value, along any of its axes."""
    attributes = operation.attributes
    root = _root(state, operation, operation.inputs[0])
    if len(attributes["before"]) != len(root.shape):
        raise ModelError(f"{operation.source} pads {len(attributes['before'])} axes of {len(root.shape)}")
    moved = Moved.of(root.shape).padded(attributes["before"], attributes["after"])
    add_moved(state, operation.output, root, moved, operation.source, attributes["value"])


def add_joined(state: State, operation: Operation) -> None:
    """Concatenate along any axis: each operand is put to its position among zeros, and added to those before."""
    source, axis = operation.source, operation.attributes["axis"]
    if len(operation.inputs) > _MOST_JOINED:
        raise ModelError(f"{source} joins {len(operation.inputs)} activations, each of which would be written anew")
    shape = state.trace.shapes[operation.output]
    roots = [_root(state, operation, name) for name in operation.inputs]
    has_images = any(root.positions[1:2] == (3,) for root in roots)
    first, last = 0, None
    for root in roots:
        before, after = [0] * len(shape), [0] * len(shape)
        before[axis], after[axis] = first, shape[axis] - first - root.shape[axis]
        moved = Moved.of(root.shape).padded(tuple(before), tuple(after))
        first += root.shape[axis]
        tensor, seen = _result(state, operation.output, moved, has_images)
        if last is not None and (tensor.image, tensor.channels) != (last.image, last.channels):
            raise ModelError(f"{source} joins what lies in memory as images with what lies as rows")
        draft = _append(state, root, seen, tensor, source)
        if last is not None:
            draft.residual = last
            draft.append("residual")
        last = tensor
    assert last is not None
    state.values[operation.output] = Value(last, shape, last.image[0] if last.image else last.rows)


_MOST_JOINED = 3
"""Operands of a concatenation up to which it pays to write the whole for each."""


def add_resized(state: State, operation: Operation) -> None:
    """An image whose lines and columns are repeated, or interpolated."""
    source, attributes = operation.source, operation.attributes
    if "factors" in attributes:
        root = _root(state, operation, operation.inputs[0])
        add_moved(state, operation.output, root, Moved.of(root.shape).repeated(attributes["factors"]), source)
        return
    value = with_channels_second(state, state.materialised(operation.inputs[0], source), source)
    image = value.read_as_image(source)
    shape = state.trace.shapes[operation.output]
    layer = Resize(image, shape[2], shape[3], attributes["scale"], attributes["shift"])
    draft = state.new_draft(layer, value.tensor, shape, image[3], source)
    draft.output.name, draft.output.image = operation.output, (image[0], shape[2], shape[3], image[3])
    state.values[operation.output] = Value(draft.output, shape, image[0])


def _root(state: State, operation: Operation, name: str) -> Root:
    """What an operation reads, in the very shape in which the model sees it."""
    value = state.materialised(name, operation.source)
    tensor, shape = value.tensor, value.shape
    first = 4 - len(shape)
    if tensor.image is None and value.channels_last and first >= 0 and value.has_channels_at(len(shape) - 1):
        batch, h, w, channels = (*(1,) * first, *shape)
        return Root(tensor, shape, tuple(range(first, 4)), (batch, h, w, channels))
    if not value.channels_last and len(shape) == 3 and value.has_channels_at(1):
        # pixels that the model sees in one row, whatever lines others see
        return Root(tensor, shape, (0, 3, 2), (shape[0], 1, shape[2], shape[1]))
    root = Root.of(value, operation.source)
    if root is None or root.shape != value.shape:
        raise ModelError(f"{operation.source} reads shape {list(value.shape)}, of which no axis has the channels alone")
    return root


def with_channels_second(state: State, value: Value, source: Source) -> Value:
    """A value ``[batch, channels, …]`` whose tensor has these channels: the value itself, or of a copy."""
    is_single = value.tensor.channels == 1 and value.shape[1:2] == (1,)
    if is_single or value.padding != NO_PADDING or len(value.shape) not in (3, 4):
        return value
    return with_channels_at(state, value, 1, source)


def with_channels_at(state: State, value: Value, axis: int, source: Source) -> Value:
    """A value whose tensor has the elements along an axis as its channels: the value itself, or of a copy if it can."""
    if value.has_channels_at(axis):
        return value
    value = state.settled(value)
    root = Root.of(value, source)
    moved = None if root is None else Moved.of(root.shape).reshaped(value.shape)
    if root is None or moved is None:
        return value
    batch, channels, pixels = math.prod(value.shape[:axis]), value.shape[axis], value.shape[axis + 1 :]
    h, w = pixels if axis == 1 and len(pixels) == 2 else (1, math.prod(pixels))
    seen = moved.reshaped((batch, channels, h, w))
    if seen is None:
        return value
    image = (batch, h, w, channels)
    tensor = DraftTensor(f"{value.tensor.name}/image", (batch, channels, h, w), channels, image=image)
    _append(state, root, seen, tensor, source)
    return Value(tensor, value.shape, batch)


def add_moved(state: State, name: str, root: Root, moved: Moved, source: Source, fill: float = 0.0) -> None:
    """A layer that makes a value of a root's elements."""
    tensor, seen = _result(state, name, moved, root.is_channels_first)
    _append(state, root, seen, tensor, source, fill)
    state.values[name] = Value(tensor, state.trace.shapes[name], tensor.image[0] if tensor.image else tensor.rows)


def _append(state: State, root: Root, seen: Moved, tensor: DraftTensor, source: Source, fill: float = 0.0) -> Draft:
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
    draft = state.new_draft(layer, root.tensor, tensor.shape, tensor.channels, source)
    draft.output, tensor.producer = tensor, draft
    return draft


def _result(state: State, name: str, moved: Moved, is_of_images: bool) -> tuple[DraftTensor, Moved]:
    """The tensor that is made, and the value in the shape in which the tensor is seen.

    It is an image if its readers take it as one, or if it is made of one; rows otherwise.
    """
    tensor = state.readers.tensor(name)
    tensor.channels_first = False
    shape = tensor.shape
    if tensor.image is None and len(shape) in (3, 4) and is_of_images:
        h, w = (1, *shape[2:])[-2:]
        tensor = DraftTensor(name, shape, shape[1], image=(shape[0], h, w, shape[1]))
    if tensor.image is not None:
        batch, h, w, channels = tensor.image
        seen = moved.reshaped((batch, channels, h, w))
        if seen is not None:
            return tensor, seen
        tensor = DraftTensor(name, shape, shape[-1])
    return tensor, moved
