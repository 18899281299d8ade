"""Whole networks for images become the layers of their publications, and compute what ONNX Runtime computes."""

import math
from collections import Counter

import numpy as np
import onnx
import pytest
from networks import NETWORKS, network, vgg16
from onnx_builder import check_against_onnxruntime, layers, light_network, random_inputs, run_onnx
from slow import slow_except

from tvm_coexec.errors import InputError
from tvm_coexec.layers import Conv2d

LAYERS: dict[str, dict[str, int]] = {
    "resnet18": {"conv2d": 20, "pool": 2, "linear": 1},
    "resnet50": {"conv2d": 53, "pool": 2, "linear": 1},
    "vgg16": {"conv2d": 13, "pool": 5, "linear": 3},
    "mobilenet_v2": {"conv2d": 52, "pool": 1, "linear": 1},
    "squeezenet": {"conv2d": 26, "pool": 4, "concat": 8},
    "inception_v3": {"conv2d": 94, "pool": 14, "concat": 11, "linear": 1},
}


@pytest.mark.parametrize("name", slow_except(LAYERS, 0, 3, 4))
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


SIZES = [
    ("resnet18", 1.81e9, 11.69e6),
    ("resnet50", 4.09e9, 25.56e6),
    ("inception_v3", 5.71e9, 23.83e6),
    ("mobilenet_v2", 0.30e9, 3.50e6),
    ("squeezenet", 0.349e9, 1.235e6),
    ("minilm", 1.43e9, 22.4e6),
    ("vit_b16", 17.56e9, 86.57e6),
    ("vgg16", 15.47e9, 138.36e6),
]


@pytest.mark.parametrize(("name", "multiplications", "parameters"), slow_except(SIZES, 0, 3, 5))
def test_published_sizes(name: str, multiplications: float, parameters: float) -> None:
    model = network(name)
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values}
    shapes |= {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    found = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            found += math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type in ("Gemm", "MatMul"):
            found += math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    assert found == pytest.approx(multiplications, rel=0.01)
    assert sum(math.prod(tensor.dims) for tensor in model.graph.initializer) == pytest.approx(parameters, rel=0.015)


@pytest.mark.parametrize("name", slow_except(NETWORKS, 0))
def test_activations_stay_near_one_and_weights_the_same(name: str) -> None:
    small = {"width": 1 / 12} if name == "minilm" else {"width": 1 / 12, "size": 75 if name == "inception_v3" else 64}
    model = NETWORKS[name](**small)
    onnx.checker.check_model(model, full_check=True)
    assert NETWORKS[name](**small) == model
    words = {"input": np.arange(128, dtype=np.int64)[None]}
    (result,) = run_onnx(model, words if name == "minilm" else random_inputs(model)).values()
    assert np.isfinite(result).all() and 0.1 < result.std() < 30


def test_networks_that_there_are_not() -> None:
    with pytest.raises(InputError, match=r"no network named 'lenet'.*resnet18"):
        network("lenet")


@pytest.mark.parametrize(("name", "normalised"), slow_except([("squeezenet", 0), ("inception_v1", 2)], 0))
def test_networks_of_the_onnx_package(name: str, normalised: int) -> None:
    graph = check_against_onnxruntime(light_network(name))
    assert sum(node.layer.op == "local_norm" for node in graph.nodes) == normalised
