"""A model as the rest of the product sees it: layers in execution order, joined by named tensors.

Nothing here knows where a model came from or what will run it, and only numpy is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from tvm_coexec.errors import ModelError
from tvm_coexec.layers import (
    TILE,
    AnyLayer,
    Conv2d,
    LocalNorm,
    Opaque,
    Pool,
    tile_count,
)

Image = tuple[int, int, int, int]
"""Sizes of an image as kernels see it: batch, height, width, channels."""


_MOST_AXES = 32
_MOST_ELEMENTS = 2**31 - 1
"""A tensor has no more elements, since kernels count by 32 bits."""


@dataclass
class Tensor:
    """An activation, or one of the model's inputs or outputs.

    Layers see rows of channels. An image is ``batch · height · width`` such rows, one for each pixel.

    Attributes
    ----------
    name
        Unique in its graph.
    shape
        For an input or output, as the model's user sees it; for any other image, the same as ``image``.
    channel_axes
        Trailing axes that together form the channels. It is 1 unless a model flattens one of its inputs, or
        unflattens or squeezes one of its outputs: ``[8, 1, 28, 28]`` read as 8 rows of 784 has 3, ``[8]`` read as
        8 rows of 1 has 0. It means nothing if ``channels_first``.
    image
        Batch, height, width and channels, if any layer reads or writes the tensor as an image.
    channels_first
        The elements of ``shape`` are in the order batch, channels, height, width (``shape`` itself may have other axes,
        such as those of a flattened image). Only inputs and outputs can be so: they are reordered on their way in
        and out, and every other tensor has its channels last.
    dtype
        The type of the elements: what the layers say that read and write it.
    parent, first_channel
        The image that this one is a slice of, and where its channels begin there. No node writes a parent: it is
        there when its slices are, which lie in its memory. Channels behind the last one's, in the same tile, are zero.
    counted_by
        The output that says how many of this output's rows count, if that depends on the inputs.
    """

    name: str
    shape: tuple[int, ...]
    channel_axes: int = 1
    image: Image | None = None
    channels_first: bool = False
    dtype: str = "float32"
    parent: str | None = None
    first_channel: int = 0
    counted_by: str | None = None

    @property
    def rows(self) -> int:
        """Rows of the two-dimensional view that layers work on."""
        if self.image is not None:
            return math.prod(self.image[:3])
        return math.prod(self.shape[: len(self.shape) - self.channel_axes])

    @property
    def channels(self) -> int:
        """Columns of the two-dimensional view that layers work on."""
        if self.image is not None:
            return self.image[3]
        return math.prod(self.shape[len(self.shape) - self.channel_axes :])


@dataclass
class Node:
    """One layer, the tensors that it reads and writes, and its constant operands.

    ``params`` are contiguous, and of the types that the layer says: ``weights`` ``[k, n]`` of a linear layer and
    ``[out, in / groups, height, width]`` of a convolution, ``gamma`` and ``beta`` ``[n]`` of ``layer_norm``, and
    ``bias`` ``[n]`` of any layer whose epilogue has the step ``bias``. ``residual`` names the tensor that the
    epilogue's step ``residual`` adds, ``others`` those that a concatenation puts behind ``input``, the second operand
    of arithmetic, or the further operands of an opaque layer.
    """

    name: str
    layer: AnyLayer
    input: str
    residual: str | None
    output: str
    params: dict[str, np.ndarray] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the tensors that the node reads."""
        return (self.input, *self.others, *(() if self.residual is None else (self.residual,)))

    @property
    def local_reads(self) -> tuple[str, ...]:
        """Those of which a unit of the layer needs the same unit alone, if they are divided as the layer is."""
        roles = ("input", *(f"input{index}" for index in range(1, 1 + len(self.others))), "residual")
        far = {name for name, role in zip(self.reads, roles, strict=False) if not self.layer.reads_locally(role)}
        return tuple(dict.fromkeys(name for name in self.reads if name not in far))


@dataclass(frozen=True)
class State:
    """An input that goes on from run to run: what it is in the first, and the output that it is in the next."""

    output: str
    initial: np.ndarray


@dataclass
class Graph:
    """Nodes in an order in which they can run, and every tensor that they touch.

    ``states`` are known by input; ``fixed`` has the values of inputs of the model that are constants of this graph.
    """

    tensors: dict[str, Tensor]
    inputs: list[str]
    outputs: list[str]
    nodes: list[Node]
    states: dict[str, State] = field(default_factory=dict)
    fixed: dict[str, np.ndarray] = field(default_factory=dict)

    def consumers(self, tensor: str) -> list[Node]:
        """List the nodes that read ``tensor``, in execution order."""
        return [node for node in self.nodes if tensor in node.reads]

    def slices(self, tensor: str) -> list[str]:
        """Tensors that are slices of ``tensor``, in the order of their channels."""
        found = [sliced for sliced in self.tensors.values() if sliced.parent == tensor]
        return [sliced.name for sliced in sorted(found, key=lambda sliced: sliced.first_channel)]

    def parents(self, tensor: str) -> tuple[str, ...]:
        """What ``tensor`` is a slice of, what that is a slice of, and so on."""
        parent = self.tensors[tensor].parent
        return () if parent is None else (parent, *self.parents(parent))

    def without_weights(self) -> Graph:
        """The same graph without the parameters that random numbers may stand for: all but those of opaque layers."""
        nodes = [node if isinstance(node.layer, Opaque) else replace(node, params={}) for node in self.nodes]
        return replace(self, nodes=nodes)

    def validate(self) -> None:
        """Check that the graph can run as it is written.

        Raises
        ------
        ModelError
            Naming the first tensor or node that does not fit.
        """
        self._check_tensors()
        for kind, names in (("input", self.inputs), ("output", self.outputs)):
            _check_unique(names, f"{kind} tensor")
            for name in names:
                if name not in self.tensors:
                    raise ModelError(f"graph {kind} {name!r} is not among the graph's tensors; add it")
        _check_unique([node.name for node in self.nodes], "node")

        slices = self._all_parts()
        written = {*self.inputs, *(node.output for node in self.nodes)}
        for parent, own in slices.items():
            self._check_slices(parent, own, written)
        available = set(self.inputs)
        for node in self.nodes:
            _check_node(node, self.tensors, available)
            available.add(node.output)
            for parent in self.parents(node.output):
                if available.issuperset(slices[parent]):
                    available.add(parent)
        for name in [*self.outputs, *self.tensors]:
            if name not in available:
                raise ModelError(f"tensor {name!r} is computed by no node; remove it, or add the node that makes it")
        self._check_states()

    def _check_states(self) -> None:
        for name, state in self.states.items():
            if name not in self.inputs or state.output not in self.outputs:
                raise ModelError(f"state {name!r} is no input, or {state.output!r} no output; add them to the graph's")
            now, following = (list(self.tensors[one].shape) for one in (name, state.output))
            if not now == following == list(state.initial.shape):
                raise ModelError(
                    f"state {name!r} is {list(state.initial.shape)} at first, {now} in a run and {following} in the "
                    f"next; give its input a shape that stays, as by `--shape {name}={','.join(map(str, following))}`"
                )

    def _check_tensors(self) -> None:
        seen_by_user = {*self.inputs, *self.outputs}
        for name, tensor in self.tensors.items():
            _check_tensor(name, tensor)
            if tensor.channels_first and name not in seen_by_user:
                raise ModelError(f"tensor {name!r} has its channels first; only inputs and outputs can")

    def _all_parts(self) -> dict[str, list[str]]:
        """The parts of each tensor that has some, in the order of their channels."""
        slices: dict[str, list[str]] = {}
        for name, tensor in sorted(self.tensors.items(), key=lambda item: item[1].first_channel):
            if tensor.parent is not None:
                slices.setdefault(tensor.parent, []).append(name)
        return slices

    def _check_slices(self, parent: str, slices: list[str], written: set[str]) -> None:
        """Parts must fill the channels of an image that nothing else writes, and begin where its tiles do."""
        if parent not in self.tensors or parent in written:
            raise ModelError(
                f"{parent!r}, which others are slices of, must be a tensor that no node writes, and no input"
            )
        image, channel = self.tensors[parent].image, 0
        for name in slices:
            sliced = self.tensors[name]
            fits = sliced.image is not None and image is not None and sliced.image[:3] == image[:3]
            if not fits or sliced.first_channel != channel or channel % TILE or name in (*self.inputs, *self.outputs):
                raise ModelError(
                    f"tensor {name!r} cannot be a slice of {parent!r} from channel {sliced.first_channel} on; slices "
                    f"are images of the network's own that follow each other and begin at multiples of {TILE}"
                )
            channel += sliced.channels
        last = self.tensors[parent].channels
        if channel > last or tile_count(channel) != tile_count(last):
            raise ModelError(f"the slices of {parent!r} have {channel} channels, but it has {last}")


def _check_unique(names: list[str], kind: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ModelError(f"{kind} name {name!r} is used twice; names must be unique")


def check_extents(name: str, shape: tuple[int, ...]) -> None:
    """Refuse a shape of more axes, or elements, than a tensor can have."""
    if len(shape) > _MOST_AXES:
        raise ModelError(
            f"tensor {name!r} has {len(shape)} axes, and arrays of numpy 1 have {_MOST_AXES} at most; join some of them"
        )
    if math.prod(shape) > _MOST_ELEMENTS:
        raise ModelError(
            f"tensor {name!r} of shape {shape} has more than the {_MOST_ELEMENTS} elements that kernels count; "
            "give the model smaller inputs"
        )


def _check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.name != name:
        raise ModelError(f"tensor {tensor.name!r} is listed under the name {name!r}; list it under its own")
    if not 0 <= tensor.channel_axes <= len(tensor.shape) or 0 in tensor.shape:
        raise ModelError(
            f"tensor {name!r} has shape {tensor.shape} with {tensor.channel_axes} channel axes; "
            "it must have at least so many axes, and none of size 0"
        )
    check_extents(name, tensor.shape)
    if tensor.image is not None and math.prod(tensor.image) != math.prod(tensor.shape):
        raise ModelError(
            f"tensor {name!r} of shape {tensor.shape} cannot be the image {tensor.image}; sizes must agree"
        )
    if tensor.channels_first and tensor.image is None:
        raise ModelError(f"tensor {name!r} has its channels first but is no image; only images can")


def _check_node(node: Node, tensors: dict[str, Tensor], available: set[str]) -> None:
    for name in node.reads:
        if name not in available:
            raise ModelError(f"node {node.name!r} reads {name!r} before any node has computed it; reorder the nodes")
    if node.output in available or node.output not in tensors:
        raise ModelError(f"node {node.name!r} writes {node.output!r}, which must be a tensor that nothing else writes")
    if (node.residual is not None) != ("residual" in node.layer.epilogue):
        raise ModelError(
            f"node {node.name!r} must name a residual tensor exactly when its epilogue adds one; "
            f"its epilogue is {node.layer.epilogue}, its residual {node.residual!r}"
        )
    _check_sizes(node, tensors)
    _check_params(node)


def _check_sizes(node: Node, tensors: dict[str, Tensor]) -> None:
    layer = node.layer
    if len(layer.input_sizes) != 1 + len(node.others):
        given = 1 + len(node.others)
        raise ModelError(f"node {node.name!r} reads {given} tensors, but its layer takes {len(layer.input_sizes)}")
    residual = () if node.residual is None else (layer.output_size,)
    sizes = (*layer.input_sizes, *residual, layer.output_size)
    dtypes = (*layer.input_dtypes, *(layer.output_dtype for _ in residual), layer.output_dtype)
    for name, size, dtype in zip((*node.reads, node.output), sizes, dtypes, strict=True):
        tensor = tensors[name]
        rows, channels = math.prod(size[:-1]), size[-1]
        if (tensor.rows, tensor.channels) != (rows, channels):
            raise ModelError(
                f"node {node.name!r} needs {name!r} to be {rows} rows of {channels} channels, "
                f"but it is {tensor.rows} rows of {tensor.channels}"
            )
        if tensor.dtype != dtype:
            raise ModelError(f"node {node.name!r} needs {name!r} to be {dtype}, but it is {tensor.dtype}")
        sees_image = isinstance(layer, Conv2d | Pool | LocalNorm) or (isinstance(layer, Opaque) and tensor.image)
        if sees_image and tensor.image != size:
            raise ModelError(f"node {node.name!r} needs {name!r} to be the image {size}, but it is {tensor.image}")


def _check_params(node: Node) -> None:
    expected = node.layer.parameter_shapes()
    if set(node.params) != set(expected):
        raise ModelError(f"node {node.name!r} must have the parameters {sorted(expected)}, not {sorted(node.params)}")
    for name, shape in expected.items():
        array = node.params[name]
        dtype = node.layer.parameter_dtype(name)
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise ModelError(
                f"parameter {name!r} of node {node.name!r} must be a contiguous {dtype} array of shape {shape}, "
                f"not {array.dtype} of shape {array.shape}"
            )
