"""Graphs that cannot run as they are written are refused, naming the tensor or node."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from tvm_coexec.errors import ModelError
from tvm_coexec.graph import Graph, Node, Tensor
from tvm_coexec.layers import Concat, Conv2d, Linear, Pool, RowWise


def array(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def example() -> Graph:
    """``x → fc (+ bias + x) → norm → y``."""
    shapes: dict[str, tuple[int, ...]] = {"x": (2, 3, 5), "h": (6, 5), "y": (2, 3, 5)}
    linear = Linear(6, 5, 5, ("bias", "residual"))
    norm = RowWise("layer_norm", 6, 5, (), 1e-5)
    return Graph(
        {name: Tensor(name, shape) for name, shape in shapes.items()},
        ["x"],
        ["y"],
        [
            Node("fc", linear, "x", "x", "h", {"weights": array(5, 5), "bias": array(5)}),
            Node("norm", norm, "h", None, "y", {"gamma": array(5), "beta": array(5)}),
        ],
    )


def change_node(index: int, **changes: Any) -> Graph:
    graph = example()
    graph.nodes[index] = dataclasses.replace(graph.nodes[index], **changes)
    return graph


def change_tensor(name: str, tensor: Tensor) -> Graph:
    graph = example()
    graph.tensors[name] = tensor
    return graph


def test_valid_graph_and_its_consumers():
    graph = example()
    graph.validate()
    assert [node.name for node in graph.consumers("x")] == ["fc"]
    assert [node.name for node in graph.consumers("h")] == ["norm"]
    assert graph.consumers("y") == []


@pytest.mark.parametrize(
    ("shape", "channel_axes", "rows", "channels"),
    [
        ((2, 3, 5), 1, 6, 5),
        ((2, 3, 5), 2, 2, 15),
        ((2, 3, 5), 3, 1, 30),
        ((4,), 1, 1, 4),
        ((4,), 0, 4, 1),
        ((), 0, 1, 1),
    ],
)
def test_two_dimensional_view(shape, channel_axes, rows, channels):
    tensor = Tensor("t", shape, channel_axes)
    assert (tensor.rows, tensor.channels) == (rows, channels)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (change_tensor("h", Tensor("other", (6, 5))), "'other' is listed under the name 'h'"),
        (change_tensor("h", Tensor("h", (0, 5))), r"'h' has shape \(0, 5\)"),
        (change_tensor("h", Tensor("h", (6, 5), 3)), "with 3 channel axes"),
        (change_tensor("h", Tensor("h", (6, 6))), "'fc' needs 'h' to be 6 rows of 5 channels, but it is 6 rows of 6"),
        (change_tensor("unused", Tensor("unused", (1,))), "tensor 'unused' is computed by no node"),
        (dataclasses.replace(example(), inputs=["x", "z"]), "graph input 'z' is not among"),
        (dataclasses.replace(example(), outputs=["y", "y"]), "output tensor name 'y' is used twice"),
        (dataclasses.replace(example(), nodes=example().nodes[::-1]), "'norm' reads 'h' before any node"),
        (dataclasses.replace(example(), nodes=example().nodes[:1]), "tensor 'y' is computed by no node"),
        (change_node(1, name="fc"), "node name 'fc' is used twice"),
        (change_node(1, output="h"), "'norm' writes 'h', which must be a tensor that nothing else writes"),
        (change_node(1, output="nowhere"), "'norm' writes 'nowhere'"),
        (change_node(0, residual=None), "'fc' must name a residual tensor exactly when"),
        (change_node(1, residual="x"), "'norm' must name a residual tensor exactly when"),
        (change_node(0, layer=Linear(6, 4, 5, ("bias", "residual"))), "'fc' needs 'x' to be 6 rows of 4 channels"),
        (change_node(0, params={"weights": array(5, 5)}), r"'fc' must have the parameters \['bias', 'weights'\]"),
        (change_node(1, params={}), r"'norm' must have the parameters \['beta', 'gamma'\], not \[\]"),
        (change_node(1, params={"gamma": array(5), "beta": array(4)}), r"'beta' of node 'norm' .* of shape \(5,\)"),
        (change_node(1, params={"gamma": array(5), "beta": np.ones(5)}), "contiguous float32 .* not float64"),
    ],
)
def test_invalid_graphs(graph, message):
    with pytest.raises(ModelError, match=message):
        graph.validate()


def test_weights_must_be_contiguous():
    graph = example()
    graph.nodes[0].params["weights"] = array(5, 10)[:, ::2]
    with pytest.raises(ModelError, match="'weights' of node 'fc' must be a contiguous"):
        graph.validate()


def images() -> Graph:
    """``x → conv (+ bias) → concatenated with itself → pooled``; the user sees channels first."""
    conv = Conv2d(4, 5, 3, 8, (3, 3), padding=(1, 1, 1, 1), epilogue=("bias",))
    tensors = [
        Tensor("x", (1, 3, 4, 5), 1, (1, 4, 5, 3), True),
        Tensor("h", (1, 4, 5, 8), 1, (1, 4, 5, 8)),
        Tensor("c", (1, 4, 5, 16), 1, (1, 4, 5, 16)),
        Tensor("y", (1, 16), 1, (1, 1, 1, 16)),
    ]
    nodes = [
        Node("conv", conv, "x", None, "h", {"weights": array(8, 3, 3, 3), "bias": array(8)}),
        Node("join", Concat(4, 5, (8, 8)), "h", None, "c", {}, ("h",)),
        Node("pool", Pool("average", 4, 5, 16, (4, 5)), "c", None, "y"),
    ]
    return Graph({tensor.name: tensor for tensor in tensors}, ["x"], ["y"], nodes)


def test_images_are_rows_of_pixels():
    graph = images()
    graph.validate()
    assert [(tensor.rows, tensor.channels) for tensor in graph.tensors.values()] == [
        (20, 3),
        (20, 8),
        (20, 16),
        (1, 16),
    ]
    assert [node.name for node in graph.consumers("h")] == ["join"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": Tensor("x", (1, 3, 4, 5), 1, (1, 5, 4, 3), True)}, r"'conv' needs 'x' to be the image \(1, 4, 5, 3\)"),
        ({"x": Tensor("x", (1, 3, 4, 5), 1, (1, 4, 4, 3), True)}, "cannot be the image"),
        ({"x": Tensor("x", (1, 3, 4, 5), channels_first=True)}, "channels first but is no image"),
        ({"h": Tensor("h", (1, 8, 4, 5), 1, (1, 4, 5, 8), True)}, "only inputs and outputs can"),
        ({"c": Tensor("c", (1, 4, 5, 8), 1, (1, 4, 5, 8))}, "'join' needs 'c' to be 20 rows of 16 channels"),
    ],
)
def test_invalid_images(change, message):
    graph = images()
    graph.tensors |= change
    with pytest.raises(ModelError, match=message):
        graph.validate()


def slices(**changes: Tensor) -> Graph:
    """``x`` is pooled twice, to slices of ``c``, which is pooled to ``y``."""
    sizes = {"x": 32, "a": 32, "b": 32, "c": 64, "y": 64}
    tensors = {name: Tensor(name, (1, 4, 5, channels), 1, (1, 4, 5, channels)) for name, channels in sizes.items()}
    tensors["a"].parent = tensors["b"].parent = "c"
    tensors["b"].first_channel = 32
    pool, last = (Pool("max", 4, 5, channels, (1, 1)) for channels in (32, 64))
    nodes = [
        Node("left", pool, "x", None, "a"),
        Node("right", pool, "a", None, "b"),
        Node("last", last, "c", None, "y"),
    ]
    return Graph(tensors | changes, ["x"], ["y"], nodes)


def sliced(name: str, image: tuple[int, int, int, int] = (1, 4, 5, 32), first: int = 32, parent: str = "c") -> Tensor:
    return Tensor(name, image, 1, image, parent=parent, first_channel=first)


def test_a_whole_is_there_when_its_parts_are():
    graph = slices()
    graph.validate()
    assert (graph.slices("c"), graph.parents("b"), graph.parents("c")) == (["a", "b"], ("c",), ())
    graph.nodes[1:] = graph.nodes[:0:-1]
    with pytest.raises(ModelError, match="'last' reads 'c' before any node has computed it"):
        graph.validate()


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (slices(b=sliced("b", first=16)), "'b' cannot be a slice of 'c' from channel 16 on"),
        (slices(b=sliced("b", (1, 5, 4, 32))), "'b' cannot be a slice of 'c'"),
        (slices(b=sliced("b", (1, 4, 5, 64))), "the slices of 'c' have 96 channels, but it has 64"),
        (
            slices(c=sliced("c", (1, 4, 5, 64), 0, "y")),
            "'y', which others are slices of, must be a tensor that no node",
        ),
        (slices(c=sliced("c", (1, 4, 5, 64), 0, "z")), "'z', which others are slices of"),
        (dataclasses.replace(slices(), outputs=["y", "b"]), "'b' cannot be a slice of 'c'"),
    ],
)
def test_parts_that_do_not_fit(graph, message):
    with pytest.raises(ModelError, match=message):
        graph.validate()


def test_a_concatenation_reads_as_many_tensors_as_its_layer_says():
    graph = images()
    graph.nodes[1].others = ()
    with pytest.raises(ModelError, match="'join' reads 1 tensors, but its layer takes 2"):
        graph.validate()


def test_what_is_read_unit_by_unit_follows_from_the_layer_and_the_roles():
    pool = Pool("max", 4, 4, 64, (2, 2), epilogue=("residual",))
    assert Node("pool", pool, "x", "r", "y").local_reads == ("x", "r")
    dense = Linear(4, 64, 64, ("residual",))
    assert Node("fc", dense, "x", "r", "y").local_reads == ("r",)
    assert Node("fc", dense, "x", "x", "y").local_reads == ()


@pytest.mark.parametrize("shape", [(2**31, 1, 5), (2**62, 4, 5)])
def test_a_tensor_of_more_elements_than_kernels_count_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"tensor 'x' of shape .* has more than the 2147483647 elements"):
        change_tensor("x", Tensor("x", shape)).validate()
