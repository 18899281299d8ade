"""How every image of a network lies in memory, and the copies that are needed where layers want it differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .graph import Graph, Image, Node, Tensor
from .layers import (
    MAX_NARROW,
    AnyLayer,
    Concat,
    Conv2d,
    ImageLayer,
    ImageLayout,
    ImageLayouts,
    Opaque,
    Pool,
    RowWise,
)


def image_layouts(graph: Graph) -> dict[str, ImageLayout]:
    """A layout for every image of a graph: the padding of a convolution is a halo around the image that it reads."""
    layouts = {}
    for name, tensor in graph.tensors.items():
        if tensor.image is not None:
            readers = graph.consumers(name)
            layouts[name] = ImageLayout(_halo(name, readers), _is_narrow(name, tensor, readers, graph))
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
    return not isinstance(layer, ImageLayer | Opaque)


def _padding(node: Node, name: str) -> tuple[int, int]:
    """The halo that a node wants around an image that it reads."""
    if not isinstance(node.layer, Conv2d) or node.input != name:
        return (0, 0)
    top, left, bottom, right = node.layer.padding
    return (max(top, bottom), max(left, right))


def _halo(name: str, readers: list[Node]) -> tuple[int, int]:
    wanted = [(0, 0), *(_padding(node, name) for node in readers)]
    return (max(h for h, _ in wanted), max(w for _, w in wanted))


def _is_narrow(name: str, tensor: Tensor, readers: list[Node], graph: Graph) -> bool:
    """Whether an image is kept without padding channels: a network's input with few channels."""
    only_convolved = all(isinstance(node.layer, Conv2d) and node.reads == (name,) for node in readers)
    return name in graph.inputs and name not in graph.outputs and tensor.channels <= MAX_NARROW and only_convolved


def fit_images(graph: Graph) -> Graph:
    """Let every layer meet images that it can read.

    Element-wise maps of images become poolings of single pixels, which know of halos. Where a layer that sees rows
    touches an image that a convolution wants with a halo, the convolution reads a copy, made by a node of its own.
    """
    graph = replace(graph, nodes=[_over_image(node, graph.tensors[node.input].image) for node in graph.nodes])
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
    return Graph(tensors, graph.inputs, graph.outputs, nodes) if copies else graph


def _over_image(node: Node, image: Image | None) -> Node:
    layer = node.layer
    if image is None or not isinstance(layer, RowWise) or layer.kind != "map":
        return node
    batch, h, w, channels = image
    return replace(node, layer=Pool("average", h, w, channels, (1, 1), batch=batch, epilogue=layer.epilogue))


def _is_seen_as_rows(graph: Graph, name: str) -> bool:
    return any(_sees_rows(node.layer) and name in (*node.reads, node.output) for node in graph.nodes)


def _free_name(name: str, taken: Mapping[str, Tensor]) -> str:
    while name in taken:
        name += "_"
    return name
