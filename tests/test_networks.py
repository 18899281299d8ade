"""Whole networks for images become the layers of their publications, and compute what ONNX Runtime computes."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import NETWORKS, vgg16
from onnx import numpy_helper
from onnx_builder import check_against_onnxruntime, layers

from tvm_coexec.frontends import to_graph
from tvm_coexec.layers import Concat, Conv2d, Pool

LAYERS: dict[str, dict[str, int]] = {
    "resnet18": {"conv2d": 20, "pool": 2, "linear": 1},
    "resnet50": {"conv2d": 53, "pool": 2, "linear": 1},
    "vgg16": {"conv2d": 13, "pool": 5, "linear": 3},
    "mobilenet_v2": {"conv2d": 52, "pool": 1, "linear": 1},
    "squeezenet": {"conv2d": 26, "pool": 4, "concat": 8},
    "inception_v3": {"conv2d": 94, "pool": 14, "concat": 11, "linear": 1},
}
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


@pytest.mark.parametrize("name", NETWORKS)
def test_small_networks_equal_onnxruntime(name: str) -> None:
    graph = check_against_onnxruntime(
        NETWORKS[name](size=75 if name == "inception_v3" else 32, width=1 / 16, classes=10)
    )
    assert Counter(node.layer.op for node in graph.nodes) == LAYERS[name]
    assert sum(step == "residual" for _, steps in layers(graph) for step in steps) == {
        "resnet18": 8, "resnet50": 16, "mobilenet_v2": 10,
    }.get(name, 0)  # fmt: skip
    convolutions = [node.layer for node in graph.nodes if isinstance(node.layer, Conv2d)]
    assert all("bias" in layer.epilogue for layer in convolutions), "batch normalisation is folded"


def test_a_classifier_that_reads_pixels_is_a_covering_convolution() -> None:
    graph = check_against_onnxruntime(vgg16(size=96, width=1 / 16, classes=10))
    (covering,) = [
        node
        for node in graph.nodes
        if isinstance(node.layer, Conv2d) and node.layer.kernel == (3, 3) and not any(node.layer.padding)
    ]
    assert isinstance(covering.layer, Conv2d)
    assert (covering.layer.out_h, covering.layer.out_w, covering.layer.out_channels) == (1, 1, 256)
    assert covering.layer.epilogue == ("bias", "relu")


def test_published_sizes() -> None:
    graph = to_graph(NETWORKS["mobilenet_v2"]())
    multiplications = sum(node.layer.flops for node in graph.nodes if not isinstance(node.layer, Pool | Concat)) / 2
    assert multiplications == pytest.approx(300e6, rel=0.01)
    weights = sum(node.layer.weight_bytes for node in graph.nodes) / 4
    assert weights == pytest.approx(3.47e6, rel=0.01)


def randomised(path: Path) -> onnx.ModelProto:
    """A test network of the onnx package, its constant weights replaced by random ones, without its softmax."""
    model = onnx.load(path)
    random = np.random.default_rng(5)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    if model.graph.node[-1].op_type == "Softmax":
        model.graph.output[0].name = model.graph.node[-1].input[0]
        del model.graph.node[-1]
    for node in list(model.graph.node):
        if node.op_type == "ConstantOfShape":
            shape = tuple(shapes[node.input[0]])
            scale = np.sqrt(2 / max(np.prod(shape[1:]), 1)) if len(shape) > 1 else 0.1
            array = (random.standard_normal(shape) * scale).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
            model.graph.node.remove(node)
    kept = [value for value in model.graph.input if value.name not in shapes]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = 8
    return model


@pytest.mark.parametrize(("name", "normalised"), [("squeezenet", 0), ("inception_v1", 2)])
def test_networks_of_the_onnx_package(name: str, normalised: int) -> None:
    graph = check_against_onnxruntime(randomised(LIGHT / f"light_{name}.onnx"))
    assert sum(node.layer.op == "local_norm" for node in graph.nodes) == normalised
