"""Concatenations whose operands are computed in their places in the result: which are, and that all stays right."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from halves import CPU, Half
from networks import squeezenet
from onnx_builder import OnnxBuilder, check_against_onnxruntime, random_inputs
from poison import poison
from reference import evaluate

import tvm_coexec
from tvm_coexec.frontends import to_graph
from tvm_coexec.graph import Graph
from tvm_coexec.graph.layouts import image_layouts
from tvm_coexec.layers import (
    AnyLayer,
    Concat,
    Conv2d,
    Elementwise,
    ImageLayout,
    ImageLayouts,
    LocalNorm,
    Pool,
    Rearrange,
)
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.module import Module
from tvm_coexec.schedules import family, images

pytestmark = pytest.mark.slow

Build = Callable[[OnnxBuilder], list[str]]
PADDED = {"pads": [1] * 4}
SIZE = (2, 40, 6, 7)


def conv(b: OnnxBuilder, x: str, inputs: int, outputs: int, kernel: int = 1, groups: int = 1, **attributes: Any) -> str:
    weights = b.const(
        b.random.standard_normal((outputs, inputs // groups, kernel, kernel)) / (inputs * kernel**2) ** 0.5
    )
    pads = {"pads": [kernel // 2] * 4}
    return b.add("Conv", x, weights, b.weights(outputs), **{"group": groups, **pads, **attributes})


def relu_conv(b: OnnxBuilder, x: str, inputs: int, outputs: int, kernel: int = 1) -> str:
    return b.add("Relu", conv(b, x, inputs, outputs, kernel))


def join(b: OnnxBuilder, *operands: str) -> str:
    return b.add("Concat", *operands, axis=1)


def branches(b: OnnxBuilder) -> list[str]:
    """They end in a convolution, a wide convolution and a pooling; what follows reads a halo, or some pixels."""
    x = relu_conv(b, "x", 40, 32)
    pooled = b.add("MaxPool", x, kernel_shape=[3, 3], **PADDED)
    joined = join(b, relu_conv(b, x, 32, 64), pooled, relu_conv(b, x, 32, 32, 3))
    halved = b.add("MaxPool", joined, kernel_shape=[3, 3], strides=[2, 2])
    return [conv(b, joined, 128, 40, 3), conv(b, halved, 128, 33)]


def operands_that_others_read(b: OnnxBuilder) -> list[str]:
    """As input of a depthwise convolution, which wants a halo around the part alone, as a residual, and as a factor."""
    left, right = relu_conv(b, "x", 40, 64), relu_conv(b, "x", 40, 32)
    deep = b.add("Add", conv(b, left, 64, 64, 3, groups=64), left)
    mean = b.add("GlobalAveragePool", left)
    return [conv(b, join(b, left, right), 96, 64), b.add("Mul", b.add("Mul", left, deep), mean)]


def odd_last_operand(b: OnnxBuilder) -> list[str]:
    joined = join(b, relu_conv(b, "x", 40, 32), relu_conv(b, "x", 40, 20, 3))
    return [conv(b, joined, 52, 33, 3), b.add("AveragePool", joined, kernel_shape=[2, 2])]


def output(b: OnnxBuilder) -> list[str]:
    joined = join(b, relu_conv(b, "x", 40, 64), relu_conv(b, "x", 40, 20))
    return [joined, conv(b, joined, 84, 32, 3)]


def chain(b: OnnxBuilder) -> list[str]:
    x = relu_conv(b, "x", 40, 32)
    for channels in (32, 64, 96):
        x = join(b, x, conv(b, b.add("Sigmoid", x), channels, 32, 3))
    return [conv(b, x, 128, 40)]


def normalised(b: OnnxBuilder) -> list[str]:
    """A whole may be normalised over its channels, and a convolution may be followed by that in its place."""
    right = b.add("LRN", relu_conv(b, "x", 40, 33), size=5)
    joined = join(b, relu_conv(b, "x", 40, 32), right)
    return [conv(b, b.add("LRN", joined, size=5), 65, 40)]


def flattened(b: OnnxBuilder) -> list[str]:
    """The result is seen as rows of pixels, but no reader wants a halo."""
    joined = join(b, relu_conv(b, "x", 40, 32), relu_conv(b, "x", 40, 32))
    rows = b.add("Transpose", joined, perm=[0, 2, 3, 1])
    return [b.add("Softmax", rows, axis=-1), conv(b, joined, 64, 32)]


def channels_added(b: OnnxBuilder) -> list[str]:
    """Zeros in the last tile of a shortcut, which other layers read without them, and of a result."""
    x = relu_conv(b, "x", 40, 24)
    deep = conv(b, conv(b, x, 24, 24, 3, groups=24), 24, 30)
    y = b.add("Relu", b.add("Add", deep, more_channels(b, x, 6)))
    return [conv(b, y, 30, 20, 3), more_channels(b, relu_conv(b, y, 30, 40), 24)]


def more_channels(b: OnnxBuilder, x: str, count: int) -> str:
    return b.add("Pad", x, b.const([0, 0, 0, 0, 0, count, 0, 0], "int64"))


def not_whole_tiles(b: OnnxBuilder) -> list[str]:
    return [conv(b, join(b, relu_conv(b, "x", 40, 20), relu_conv(b, "x", 40, 32)), 52, 32, 3)]


def operand_twice(b: OnnxBuilder) -> list[str]:
    x = relu_conv(b, "x", 40, 32)
    return [conv(b, join(b, x, x), 64, 32)]


def operand_in_two(b: OnnxBuilder) -> list[str]:
    left, right, third = (relu_conv(b, "x", 40, 32) for _ in range(3))
    return [conv(b, join(b, left, right), 64, 32), conv(b, join(b, left, third), 64, 32, 3)]


def output_and_operand(b: OnnxBuilder) -> list[str]:
    x = relu_conv(b, "x", 40, 32)
    return [x, conv(b, join(b, x, relu_conv(b, "x", 40, 32)), 64, 32)]


def operand_normalised(b: OnnxBuilder) -> list[str]:
    x = relu_conv(b, "x", 40, 32)
    return [conv(b, join(b, relu_conv(b, "x", 40, 32), x), 64, 32), b.add("LRN", x, size=5)]


def operand_as_rows(b: OnnxBuilder) -> list[str]:
    x = relu_conv(b, "x", 40, 32)
    rows = b.add("Softmax", b.add("Transpose", x, perm=[0, 2, 3, 1]), axis=-1)
    return [conv(b, join(b, x, relu_conv(b, "x", 40, 32)), 64, 32), rows]


JOINED: list[Build] = [
    branches,
    operands_that_others_read,
    odd_last_operand,
    output,
    chain,
    normalised,
    flattened,
    channels_added,
]
COPIED: list[Build] = [
    not_whole_tiles,
    operand_twice,
    operand_in_two,
    output_and_operand,
    operand_normalised,
    operand_as_rows,
]


def graph_of(build: Build) -> tuple[Any, Graph]:
    b = OnnxBuilder(x=SIZE)
    model = b.model(*build(b))
    return model, check_against_onnxruntime(model)


def copies(graph: Graph) -> int:
    return sum(isinstance(node.layer, Concat | Rearrange) for node in graph.nodes)


def check_every_split(model: Any, graph: Graph, device: Device) -> Module:
    inputs = random_inputs(model)
    expected = evaluate(graph, inputs)
    module = tvm_coexec.build(model, device=device, split=0.5)
    steps = module.manifest.steps
    random = np.random.default_rng(2)
    choices: list[Callable[[int], int]] = [lambda units: units // 2, lambda units: 0, lambda units: units]
    choices += [lambda units: int(random.integers(units + 1))] * 8
    for choose in choices:
        module.set_splits({step.name: choose(step.units) for step in steps if step.gpu and step.cpu})
        poison(module)
        results = module(**inputs)
        for name, array in (results if isinstance(results, dict) else {graph.outputs[0]: results}).items():
            assert np.abs(array - expected[name]).max() < 1e-4 * np.abs(expected[name]).max(), module.splits
    return module


@pytest.mark.one_runtime
@pytest.mark.parametrize("build", JOINED)
def test_operands_are_computed_in_their_places(build: Build, device: Device) -> None:
    model, graph = graph_of(build)
    graph.validate()
    assert copies(graph) == 0
    module = check_every_split(model, graph, device)
    tensors = {tensor.name: tensor for tensor in module.manifest.tensors}
    slices = [tensor for tensor in tensors.values() if tensor.parents]
    assert slices and all(tensors[sliced.parents[0]].buffer == sliced.buffer for sliced in slices)
    assert module.memory.activation_bound_bytes <= module.memory.activation_bytes


@pytest.mark.one_runtime
@pytest.mark.parametrize("build", COPIED)
def test_what_cannot_be_a_part_is_copied(build: Build, device: Device) -> None:
    model, graph = graph_of(build)
    assert copies(graph) == 1
    check_every_split(model, graph, device)


@pytest.mark.parametrize("build", [branches, odd_last_operand, output])
@pytest.mark.parametrize("unified", [True, False])
def test_parts_are_exchanged_where_memory_is_not_shared(
    build: Build, unified: bool, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = open_device(device.info.name, mechanism="event")
    monkeypatch.setattr(apart, "info", replace(apart.info, unified_memory=unified))
    check_every_split(*graph_of(build), apart)


def test_a_whole_has_the_halo_that_any_reader_of_a_part_wants() -> None:
    _, graph = graph_of(operands_that_others_read)
    (parent,) = {tensor.parent for tensor in graph.tensors.values()} - {None}
    layouts = image_layouts(graph)
    left, right = graph.slices(str(parent))
    assert layouts[str(parent)] == ImageLayout((1, 1))
    assert layouts[left] == ImageLayout((1, 1), parent_tiles=3, first_tile=0)
    assert layouts[right] == ImageLayout((1, 1), parent_tiles=3, first_tile=2)


def test_parts_of_parts_lie_where_these_do() -> None:
    b = OnnxBuilder(x=SIZE)
    inner = join(b, relu_conv(b, "x", 40, 32), relu_conv(b, "x", 40, 32))
    outer = join(b, relu_conv(b, "x", 40, 480), inner)
    graph = check_against_onnxruntime(b.model(conv(b, outer, 544, 32), conv(b, inner, 64, 32)))
    layouts = image_layouts(graph)
    assert [layouts[name].first_tile for name in graph.slices(inner)] == [15, 16]
    assert {layouts[name].parent_tiles for name in (inner, *graph.slices(inner))} == {17}


def test_squeezenet_copies_nothing() -> None:
    assert copies(to_graph(squeezenet(size=64))) == 0


LAYOUTS = ImageLayouts(
    ImageLayout((2, 1), parent_tiles=7, first_tile=2),
    ImageLayout((1, 4), parent_tiles=9, first_tile=5),
    ImageLayout((2, 0), parent_tiles=4, first_tile=1),
)
LAYERS: list[AnyLayer] = [
    Conv2d(6, 7, 64, 40, (3, 3), padding=(1, 1, 1, 1), epilogue=("bias", "residual", "sigmoid"), batch=2),
    Conv2d(6, 7, 64, 64, (3, 3), (2, 2), (1, 1, 1, 1), groups=2, epilogue=("residual", "silu")),
    Conv2d(5, 7, 64, 64, (3, 3), padding=(1, 1, 1, 1), groups=64, epilogue=("residual",)),
    Conv2d(5, 6, 33, 33, (1, 1), epilogue=("residual", "relu")),
    Pool("max", 7, 5, 33, (3, 3), (2, 2), (1, 1, 1, 1), epilogue=("residual",)),
    Elementwise("multiply", (2, 5, 7, 40), (2, 5, 7, 40), ("residual",)),
    Elementwise("multiply", (2, 5, 7, 40), (2, 1, 1, 40)),
    Concat(5, 7, (32, 40)),
    Concat(3, 4, (20, 44)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_kernels_leave_other_parts_alone(layer: Any, device: Device) -> None:
    others = (ImageLayout((0, 1), parent_tiles=5, first_tile=3),) * (len(layer.input_sizes) - 1)
    layouts = replace(LAYOUTS, others=others)
    for side, where in (("cpu", None), ("gpu", device)):
        found = family(layer).variants(layer, side, CPU)
        for variant in {one.implementation: one for one in reversed(found)}.values():
            bound = family(layer).error_bound(variant)
            assert Half(layer, variant, where, layouts).worst_error() < max(bound, 3e-6), variant


def test_a_normalised_image_may_be_written_but_not_read_as_a_part() -> None:
    layer = LocalNorm(5, 7, 70, 5, 0.9, 0.75, 1.0)
    variant = images.default_variant(layer, "cpu", CPU)
    written = ImageLayouts(output=LAYOUTS.output)
    assert Half(layer, variant, None, written).worst_error() < 3e-6
    with pytest.raises(ValueError, match="a local_norm reads beside its channels"):
        images.build(layer, "cpu", variant, ImageLayouts(LAYOUTS.input))
