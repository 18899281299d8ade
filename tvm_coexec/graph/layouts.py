"""How every image of a network lies in memory, and the copies that are needed where layers want it differently.

A concatenation needs none where its operands can be computed in their places in its result, as slices of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate

import numpy as np

from tvm_coexec.layers import (
    MAX_NARROW,
    TILE,
    AnyLayer,
    Concat,
    Conv2d,
    ImageLayout,
    ImageLayouts,
    LocalNorm,
    Opaque,
    Pool,
    RowWise,
    row_tiles,
)

from . import Graph, Node, Tensor


def image_layouts(graph: Graph) -> dict[str, ImageLayout]:
    """A layout for every image of a graph: the padding of a convolution is a halo around the image that it reads."""
    layouts: dict[str, ImageLayout] = {}
    for name, tensor in graph.tensors.items():
        if tensor.image is not None and tensor.parent is None:
            layouts[name] = ImageLayout(_halo(name, graph), _is_narrow(name, tensor, graph))
            layouts |= _slice_layouts(name, replace(layouts[name], parent_tiles=row_tiles(tensor.channels)), graph)
    return layouts


def _slice_layouts(parent: str, layout: ImageLayout, graph: Graph) -> dict[str, ImageLayout]:
    """The layouts of an image's slices, and of theirs, if a slice that began where the image does had ``layout``."""
    layouts: dict[str, ImageLayout] = {}
    for name in graph.slices(parent):
        first_tile = layout.first_tile + graph.tensors[name].first_channel // TILE
        layouts[name] = replace(layout, first_tile=first_tile)
        layouts |= _slice_layouts(name, layouts[name], graph)
    return layouts


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
    if not isinstance(node.layer, Conv2d) or node.input != name:
        return (0, 0)
    top, left, bottom, right = node.layer.padding
    return (max(top, bottom), max(left, right))


def _halo(name: str, graph: Graph) -> tuple[int, int]:
    """What all readers of an image and of its slices can do with."""
    wanted = [(0, 0), *(_padding(node, name) for node in graph.consumers(name))]
    wanted += [_halo(sliced, graph) for sliced in graph.slices(name)]
    return (max(h for h, _ in wanted), max(w for _, w in wanted))


def _is_narrow(name: str, tensor: Tensor, graph: Graph) -> bool:
    """Whether an image is kept without padding channels: a network's input with few channels."""
    readers = graph.consumers(name)
    only_convolved = all(isinstance(node.layer, Conv2d) and node.reads == (name,) for node in readers)
    return name in graph.inputs and name not in graph.outputs and tensor.channels <= MAX_NARROW and only_convolved


def fit_images(graph: Graph) -> Graph:
    """Let every layer meet images that it can read.

    Element-wise maps of images become poolings of single pixels, which know of halos, or of inputs with few channels
    convolutions, which can read them without padding channels. Where a layer that sees rows
    touches an image that a convolution wants with a halo, the convolution reads a copy, made by a node of its own.
    Concatenations vanish where their operands can be slices of the result.
    """
    graph = replace(graph, nodes=[_over_image(node, graph) for node in graph.nodes])
    tensors = dict(graph.tensors)
    nodes: list[Node] = []
    copies: dict[str, str] = {}
    for node in graph.nodes:
        halo, image = _padding(node, node.input), tensors[node.input].image
        if halo != (0, 0) and image is not None and _is_seen_as_rows(graph, node.input):
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
    batch, h, w, channels = image
    if node.input in graph.inputs and channels <= MAX_NARROW:
        convolution = Conv2d(h, w, channels, channels, (1, 1), groups=channels, batch=batch, epilogue=layer.epilogue)
        weights = np.ones((channels, 1, 1, 1), np.float32)
        return replace(node, layer=convolution, params=node.params | {"weights": weights})
    return replace(node, layer=Pool("average", h, w, channels, (1, 1), batch=batch, epilogue=layer.epilogue))


def _join(graph: Graph) -> Graph:
    """Make operands of concatenations slices of the results, where all of one can be, and drop such nodes."""
    for node in graph.nodes:
        if isinstance(node.layer, Concat) and _can_be_joined(node, node.layer, graph):
            starts = accumulate(node.layer.channels, initial=0)
            slices = {
                name: replace(graph.tensors[name], parent=node.output, first_channel=start)
                for name, start in zip((node.input, *node.others), starts, strict=False)
            }
            nodes = [one for one in graph.nodes if one is not node]
            joined = Graph(graph.tensors | slices, graph.inputs, graph.outputs, nodes)
            if not _is_seen_as_rows(joined, node.output) or _halo(node.output, joined) == (0, 0):
                graph = joined
    return graph


def _can_be_joined(node: Node, layer: Concat, graph: Graph) -> bool:
    """Whether all operands begin with a tile of the result, and nothing touches them that a slice cannot serve.

    A copy of a single image has another purpose, and stays.
    """
    aligned = all(channels % TILE == 0 for channels in layer.channels[:-1])
    sizes = zip((*node.reads, node.output), (*layer.input_sizes, layer.output_size), strict=True)
    are_images = all(graph.tensors[name].image == size for name, size in sizes)
    are_free = 1 < len(set(node.reads)) == len(node.reads) and all(_can_be_slice(name, graph) for name in node.reads)
    return aligned and are_images and are_free


def _can_be_slice(name: str, graph: Graph) -> bool:
    """Whether an image is no slice yet, is the network's own, and is touched only by kernels that see images."""
    if graph.tensors[name].parent is not None or name in (*graph.inputs, *graph.outputs):
        return False
    users = [node for node in graph.nodes if name in (*node.reads, node.output)]
    return not _is_seen_as_rows(graph, name) and all(
        not isinstance(node.layer, Opaque) and not (isinstance(node.layer, LocalNorm) and node.input == name)
        for node in users
    )


def _is_seen_as_rows(graph: Graph, name: str) -> bool:
    """Whether a layer reads or writes an image without knowing its lines and columns, or takes them for others."""
    users = [node for node in graph.nodes if name in (*node.reads, node.output)]
    return any(_sees_rows(node.layer) or not _sees_size(node, name, graph) for node in users)


def _sees_size(node: Node, name: str, graph: Graph) -> bool:
    layer = node.layer
    if isinstance(layer, Opaque):
        return True
    residual = () if node.residual is None else (layer.output_size,)
    sizes = zip((*node.reads, node.output), (*layer.input_sizes, *residual, layer.output_size), strict=True)
    return all(size == graph.tensors[name].image for other, size in sizes if other == name)


def _free_name(name: str, taken: Mapping[str, Tensor]) -> str:
    while name in taken:
        name += "_"
    return name
