"""How every image of a network lies in memory, and the copies that are needed where layers want it differently.

A concatenation needs none where its operands can be computed in their places in its result, as slices of it; nor does
an image that gets channels of zeros, where they lie in its last tile, since what fills that up is zero. One that may
have narrow pixels has them rather, and is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from tvm_coexec.layers import (
    MAX_NARROW,
    NARROW_LAYERS,
    TILE,
    AnyLayer,
    Concat,
    Conv2d,
    ImageLayout,
    ImageLayouts,
    LocalNorm,
    Opaque,
    Pool,
    Rearrange,
    RowWise,
    reads_tiles,
    row_tiles,
    tile_count,
    wanted_halo,
)

from . import Graph, Node, Tensor


class _Touched:
    """The tensors of a graph, and of each the nodes that read or write it and the slices of it."""

    def __init__(self, graph: Graph) -> None:
        self.tensors = dict(graph.tensors)
        self.inputs, self.outputs = set(graph.inputs), set(graph.outputs)
        self.slices: dict[str, list[str]] = {}
        self.users: dict[str, list[Node]] = {}
        for name, tensor in graph.tensors.items():
            if tensor.parent is not None:
                self.slices.setdefault(tensor.parent, []).append(name)
        for node in graph.nodes:
            for name in dict.fromkeys((*node.reads, node.output)):
                self.users.setdefault(name, []).append(node)

    def readers(self, name: str) -> list[Node]:
        return [node for node in self.users.get(name, ()) if name in node.reads]

    def join(self, node: Node, channels: Sequence[int]) -> None:
        """Make operands of so many channels slices of what a node makes of them, and forget the node."""
        for name in (*node.reads, node.output):
            self.users[name] = [user for user in self.users[name] if user is not node]
        for name, start in zip(node.reads, accumulate(channels, initial=0), strict=False):
            self.tensors[name] = replace(self.tensors[name], parent=node.output, first_channel=start)
            self.slices.setdefault(node.output, []).append(name)


def image_layouts(graph: Graph) -> dict[str, ImageLayout]:
    """A layout for every image of a graph: the padding of a convolution is a halo around the image that it reads."""
    layouts: dict[str, ImageLayout] = {}
    touched = _Touched(graph)
    narrow = _narrow_images(graph, touched)
    for name, tensor in graph.tensors.items():
        if tensor.image is not None and tensor.parent is None:
            layouts[name] = narrow.get(name) or ImageLayout(_halo(name, touched))
            _add_slice_layouts(layouts, name, replace(layouts[name], parent_tiles=row_tiles(tensor.channels)), touched)
    return layouts


def _add_slice_layouts(layouts: dict[str, ImageLayout], parent: str, layout: ImageLayout, touched: _Touched) -> None:
    """Those of all slices of an image, and of theirs, if a slice that began where the image does had ``layout``."""
    for name in touched.slices.get(parent, ()):
        first_tile = layout.first_tile + touched.tensors[name].first_channel // TILE
        layouts[name] = replace(layout, first_tile=first_tile)
        _add_slice_layouts(layouts, name, layouts[name], touched)


def node_layouts(node: Node, layouts: Mapping[str, ImageLayout]) -> ImageLayouts | None:
    """The layouts of the images that a node reads and writes; None where its layer sees rows."""
    if _sees_rows(node.layer):
        return None
    rows = ImageLayout()
    return ImageLayouts(
        input=layouts.get(node.input, rows),
        output=layouts.get(node.output, rows),
        residual=layouts.get(node.residual or "", rows),
        others=tuple(layouts.get(name, rows) for name in node.others),
    )


def _sees_rows(layer: AnyLayer) -> bool:
    return len(layer.output_size) == 2 and not isinstance(layer, Opaque)


def _padding(node: Node, name: str) -> tuple[int, int]:
    """The halo that a node wants around an image that it reads."""
    return wanted_halo(node.layer) if node.input == name else (0, 0)


def _halo(name: str, touched: _Touched) -> tuple[int, int]:
    """What all readers of an image and of its slices can do with."""
    wanted = [(0, 0), *(_padding(node, name) for node in touched.readers(name))]
    wanted += [_halo(sliced, touched) for sliced in touched.slices.get(name, ())]
    return (max(h for h, _ in wanted), max(w for _, w in wanted))


def _narrow_images(graph: Graph, touched: _Touched) -> dict[str, ImageLayout]:
    """The layouts of the images whose pixels are less than a tile.

    What reads of its input's pixels as many channels as it writes needs a narrow output for a narrow input.
    """
    inputs = {
        name: ImageLayout(_halo(name, touched), graph.tensors[name].channels)
        for name in graph.inputs
        if _is_without_padding(name, touched)
    }
    found: dict[str, ImageLayout] = {}
    for name, tensor in graph.tensors.items():
        if tensor.image is not None and name not in inputs and _can_be_narrow(name, touched):
            found[name] = ImageLayout.fitting(tensor.image, _halo(name, touched))
    narrow = {name for name, layout in found.items() if layout.width is not None}
    while True:
        whole = {name for node in graph.nodes if node.output not in narrow for name in _read_as_written(node)}
        if not narrow & whole:
            return {name: found[name] for name in narrow} | inputs
        narrow -= whole


def _can_be_narrow(name: str, touched: _Touched) -> bool:
    if touched.tensors[name].parent is not None or touched.slices.get(name) or _is_seen_as_rows(name, touched):
        return False
    return all(isinstance(node.layer, NARROW_LAYERS) for node in touched.users.get(name, ()))


def _read_as_written(node: Node) -> tuple[str, ...]:
    """The tensors of whose pixels a node reads as many channels as it writes."""
    inputs = [name for at, name in enumerate((node.input, *node.others)) if reads_tiles(node.layer, at)]
    return (*inputs, *(() if node.residual is None else (node.residual,)))


def _is_without_padding(name: str, touched: _Touched) -> bool:
    """Whether an image is kept without padding channels: a network's input with few channels."""
    if name not in touched.inputs or name in touched.outputs or touched.tensors[name].channels > MAX_NARROW:
        return False
    return all(isinstance(node.layer, Conv2d) and node.reads == (name,) for node in touched.readers(name))


def fit_images(graph: Graph) -> Graph:
    """Let every layer meet images that it can read.

    Element-wise maps of images become poolings of single pixels, which know of halos, or of inputs with few channels
    convolutions, which can read them without padding channels. Where a layer that sees rows
    touches an image that a convolution wants with a halo, the convolution reads a copy, made by a node of its own.
    Concatenations vanish where their operands can be slices of the result.
    """
    graph = replace(graph, nodes=[_over_image(node, graph) for node in graph.nodes])
    tensors, touched = dict(graph.tensors), _Touched(graph)
    nodes: list[Node] = []
    copies: dict[str, str] = {}
    for node in graph.nodes:
        halo, image = _padding(node, node.input), tensors[node.input].image
        if halo != (0, 0) and image is not None and _is_seen_as_rows(node.input, touched):
            if node.input not in copies:
                copies[node.input] = copied = _free_name(f"{node.input}.padded", tensors)
                tensors[copied] = Tensor(copied, image, 1, image)
                batch, h, w, channels = image
                nodes.append(Node(copied, Concat(h, w, (channels,), batch), node.input, None, copied))
            nodes.append(replace(node, input=copies[node.input]))
        else:
            nodes.append(node)
    return _join(Graph(tensors, graph.inputs, graph.outputs, nodes))


def _over_image(node: Node, graph: Graph) -> Node:
    layer, image = node.layer, graph.tensors[node.input].image
    if image is None or not isinstance(layer, RowWise) or layer.kind != "map":
        return node
    if any(graph.tensors[name].image != image for name in (*node.reads, node.output)):
        return node  # others read as rows what this one makes
    batch, h, w, channels = image
    if node.input in graph.inputs and channels <= MAX_NARROW:
        convolution = Conv2d(h, w, channels, channels, (1, 1), groups=channels, batch=batch, epilogue=layer.epilogue)
        weights = np.ones((channels, 1, 1, 1), np.float32)
        return replace(node, layer=convolution, params=node.params | {"weights": weights})
    return replace(node, layer=Pool("average", h, w, channels, (1, 1), batch=batch, epilogue=layer.epilogue))


def _join(graph: Graph) -> Graph:
    """Make operands of concatenations slices of the results, where all of one can be, and drop such nodes."""
    touched = _Touched(graph)
    nodes = []
    for node in graph.nodes:
        channels = _joined_channels(node.layer)
        if channels and _can_be_joined(node, channels, touched):
            touched.join(node, channels)
        else:
            nodes.append(node)
    return replace(graph, tensors=touched.tensors, nodes=nodes)


def _joined_channels(layer: AnyLayer) -> tuple[int, ...]:
    """The channels of each operand of a layer that does no more than put them side by side, or zeros behind one.

    A copy of a single image has another purpose, and stays; so does one of an image of so few channels that it, and
    what it is computed of, may have narrow pixels, which saves more than the copy costs.
    """
    if isinstance(layer, Concat):
        return layer.channels if len(layer.channels) > 1 else ()
    if isinstance(layer, Rearrange) and layer.only_adds_channels and ImageLayout.fitting(layer.input).width is None:
        return layer.input[3:]
    return ()


def _can_be_joined(node: Node, channels: Sequence[int], touched: _Touched) -> bool:
    """Whether all operands begin with a tile of the result, and nothing touches them that a slice cannot serve."""
    layer = node.layer
    aligned = all(count % TILE == 0 for count in channels[:-1])
    is_full = tile_count(sum(channels)) == tile_count(layer.output_size[-1])
    sizes = zip((*node.reads, node.output), (*layer.input_sizes, layer.output_size), strict=True)
    are_images = all(touched.tensors[name].image == size for name, size in sizes)
    are_free = len(set(node.reads)) == len(node.reads) and all(_can_be_slice(name, touched) for name in node.reads)
    if not (aligned and is_full and are_images and are_free):
        return False
    has_halo = any(_halo(name, touched) != (0, 0) for name in (node.output, *node.reads))
    return not has_halo or not _is_seen_as_rows(node.output, touched)


def _can_be_slice(name: str, touched: _Touched) -> bool:
    """Whether an image is no slice yet, is the network's own, and is touched only by kernels that see images."""
    if touched.tensors[name].parent is not None or name in touched.inputs or name in touched.outputs:
        return False
    return not _is_seen_as_rows(name, touched) and all(
        not isinstance(node.layer, Opaque) and not (isinstance(node.layer, LocalNorm) and node.input == name)
        for node in touched.users[name]
    )


def _is_seen_as_rows(name: str, touched: _Touched) -> bool:
    """Whether a layer reads or writes an image without knowing its lines and columns, or takes them for others."""
    return any(_sees_rows(node.layer) or not _sees_size(node, name, touched) for node in touched.users.get(name, ()))


def _sees_size(node: Node, name: str, touched: _Touched) -> bool:
    layer = node.layer
    if isinstance(layer, Opaque):
        return True
    residual = () if node.residual is None else (layer.output_size,)
    sizes = zip((*node.reads, node.output), (*layer.input_sizes, *residual, layer.output_size), strict=True)
    return all(size == touched.tensors[name].image for other, size in sizes if other == name)


def _free_name(name: str, taken: Mapping[str, Tensor]) -> str:
    while name in taken:
        name += "_"
    return name
