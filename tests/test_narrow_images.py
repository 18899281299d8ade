"""Images of few channels, whose pixels are less than a tile: which are, and every split of what reads or makes them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from halves import CPU, FEW_REGISTERS, GPU, NARROW_CPU, Half
from hypothesis import given
from hypothesis import strategies as st
from onnx_builder import OnnxBuilder, check_against_onnxruntime
from slow import slow_except
from test_concatenations import check_every_split
from test_conv2d import conv

from tvm_coexec.graph import Graph, Node, Tensor
from tvm_coexec.graph.layouts import image_layouts
from tvm_coexec.layers import (
    TILE,
    WIDTHS,
    AnyLayer,
    Concat,
    Conv2d,
    Elementwise,
    Hardware,
    ImageLayout,
    ImageLayouts,
    PixelLayer,
    Pool,
    Rearrange,
    Resize,
    Variant,
    by_lines,
    reads_tiles,
)
from tvm_coexec.runtime.device import Device
from tvm_coexec.schedules import family

EPILOGUE = ("bias", "residual", "sigmoid")
LAYERS: list[Conv2d | PixelLayer] = [
    conv(16, 12, 8, 8, 3, padding=1, epilogue=EPILOGUE),
    conv(30, 6, 12, 5, 1, epilogue=EPILOGUE),
    conv(57, 8, 40, 7, (3, 1), padding=(1, 0), stride=(2, 1), epilogue=("bias", "relu6")),
    conv(15, 10, 6, 40, 3, padding=1, epilogue=EPILOGUE),
    conv(16, 6, 16, 16, 3, padding=1, groups=16, epilogue=("bias", "relu6")),
    conv(29, 8, 7, 7, 3, padding=1, groups=7, epilogue=EPILOGUE),
    conv(16, 8, 12, 12, 3, padding=1, groups=3, epilogue=("bias",)),
    conv(16, 8, 4, 4, 3, padding=1, groups=4, epilogue=("bias",)),
    conv(5, 7, 9, 3, 3, padding=1, batch=2, epilogue=EPILOGUE),
    Pool("max", 31, 8, 12, (3, 3), (1, 2), (1, 1, 1, 1), epilogue=("residual",)),
    Pool("average", 16, 8, 3, (2, 2), (1, 1), (0, 0, 1, 1)),
    Elementwise("divide", (1, 15, 4, 7), (1, 15, 4, 7), ("residual", "relu")),
    Elementwise("add", (1, 16, 6, 13), (1, 1, 1, 13)),
    Elementwise("subtract", (2, 3, 3, 9), (2, 3, 3, 1), ("sigmoid",)),
    Resize((1, 7, 5, 8), 14, 12, (0.5, 0.4), (0.0, 0.1), ("residual",)),
    Rearrange((1, 14, 4, 10), (1, 16, 8, 14), ((1, 16, 1, 1), (2, 8, 2, 1), (3, 14, 3, 1)), (0, -1, -2, -2), fill=0.5),
    Rearrange((1, 14, 8, 12), (1, 14, 8, 40), ((1, 14, 1, 1), (2, 8, 2, 1), (3, 40, 3, 1)), epilogue=("residual",)),
    Rearrange((1, 7, 4, 36), (1, 14, 8, 9), ((1, 7, 1, 1), (1, 2, 3, 2), (2, 4, 2, 1), (2, 2, 3, 1), (3, 9, 3, 4))),
]
DIVIDED = [lines for layer in LAYERS if (lines := by_lines(layer)) is not None]
HARDWARE = [CPU, NARROW_CPU, FEW_REGISTERS]
TOLERANCE, WINOGRAD_TOLERANCE = 4e-6, 5e-5


def layouts_of(layer: Conv2d | PixelLayer) -> ImageLayouts:
    """Narrow ones wherever the layer can have them, with halos that are wider than they have to be."""
    alone = ImageLayouts.alone(layer)

    def wider(layout: ImageLayout) -> ImageLayout:
        return replace(layout, halo=(layout.halo[0] + 1, layout.halo[1] + TILE // min(WIDTHS)))

    others = tuple(map(wider, alone.others))
    return ImageLayouts(wider(alone.input), wider(alone.output), wider(alone.residual), others)


def some_variants(layer: Conv2d | PixelLayer, side: str, hardware: Hardware) -> list[Variant]:
    """The first and the last of every implementation."""
    found: dict[str, list[Variant]] = {}
    for variant in family(layer).variants(layer, side, hardware):
        found.setdefault(variant.implementation, []).append(variant)
    return [variant for ones in found.values() for variant in dict.fromkeys((ones[0], ones[-1]))]


def tolerance(variant: Variant) -> float:
    return WINOGRAD_TOLERANCE if variant.implementation == "winograd" else TOLERANCE


def is_narrow(layer: Conv2d | PixelLayer) -> bool:
    layouts = ImageLayouts.alone(layer)
    return layouts.output.width in WIDTHS or (not reads_tiles(layer) and layouts.input.width in WIDTHS)


@pytest.mark.parametrize("layer", [*LAYERS, *DIVIDED], ids=str)
def test_layers_of_few_channels_are_measured_with_narrow_images(layer: Conv2d | PixelLayer) -> None:
    assert is_narrow(layer)


@pytest.mark.parametrize("layer", slow_except([*LAYERS, *DIVIDED], 0, 4, 14, 15), ids=str)
def test_every_split_on_the_cpu(layer: Conv2d | PixelLayer) -> None:
    for hardware in HARDWARE:
        for variant in some_variants(layer, "cpu", hardware):
            half = Half(layer, variant, None, layouts_of(layer))
            assert half.worst_error() < tolerance(variant), str(variant)


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[12], DIVIDED[-1]], ids=str)
def test_every_split_on_opencl_devices(layer: Conv2d | PixelLayer, device: Device) -> None:
    check_on_device(layer, device)


@pytest.mark.slow
@pytest.mark.one_runtime
@pytest.mark.parametrize("layer", [*LAYERS, *DIVIDED], ids=str)
def test_every_split_of_more_layers_on_an_opencl_device(layer: Conv2d | PixelLayer, device: Device) -> None:
    check_on_device(layer, device)


def check_on_device(layer: Conv2d | PixelLayer, device: Device) -> None:
    for hardware in (FEW_REGISTERS, GPU):
        for variant in some_variants(layer, "gpu", hardware):
            half = Half(layer, variant, device, layouts_of(layer))
            assert half.worst_error() < tolerance(variant), str(variant)


@pytest.mark.slow
@pytest.mark.one_runtime
@pytest.mark.parametrize("layer", LAYERS[::3], ids=str)
def test_variants_suit_whole_tiles_too(layer: Conv2d | PixelLayer, device: Device) -> None:
    """A network may have wider images than those that a layer was measured with, or a wider one among them."""
    alone = layouts_of(layer)

    def whole(layout: ImageLayout) -> ImageLayout:
        return replace(layout, width=None)

    wide_input = replace(alone, input=whole(alone.input), residual=whole(alone.residual))
    all_wide = ImageLayouts(*map(whole, (alone.input, alone.output, alone.residual)), tuple(map(whole, alone.others)))
    for layouts in (wide_input, all_wide):
        for where, hardware in ((None, CPU), (None, NARROW_CPU), (device, CPU), (device, GPU)):
            for variant in some_variants(layer, "gpu" if where else "cpu", hardware):
                half = Half(layer, variant, where, layouts)
                assert half.worst_error() < tolerance(variant), str(variant)


@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(0, 3))
def test_lines_that_are_divided_begin_with_a_tile(batch: int, h: int, w: int, channels: int, halo: int) -> None:
    layout = ImageLayout.fitting((batch, h, w, channels), (halo, halo))
    assert layout.halo[0] == halo <= layout.halo[1]
    assert layout.pixel(channels) >= channels
    if layout.width is None:
        assert channels > max(WIDTHS) or w % 2 or layout == ImageLayout((halo, halo))
    else:
        line = layout.extents(h, w)[1] * layout.pixel(channels)
        assert line % TILE == 0 or batch > 1 or by_lines(Pool("max", h, w, channels, (1, 1))) is None


def branching(w: int) -> OnnxBuilder:
    """An image of eight channels goes through all that reads narrow images, and comes out as two outputs."""
    b = OnnxBuilder(x=(1, 3, 30, w))

    def convolved(x: str, inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> str:
        weights = b.const(b.random.standard_normal((outputs, inputs // groups, kernel, kernel)) / kernel**2)
        return b.add("Conv", x, weights, b.weights(outputs), group=groups, pads=[kernel // 2] * 4)

    x = b.add("Relu", convolved("x", 3, 8))
    y = b.add("Add", convolved(b.add("Relu", convolved(x, 8, 8, groups=8)), 8, 8, 1), x)
    pooled = b.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    scales = b.const([1, 1, 2, 2])
    grown = b.add("Resize", pooled, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    gate = b.add("Sigmoid", convolved(b.add("GlobalAveragePool", grown), 8, 8, 1))
    b.outputs = (convolved(b.add("Mul", grown, gate), 8, 1), convolved(grown, 8, 40))
    return b


@pytest.mark.slow
@pytest.mark.one_runtime
@pytest.mark.parametrize("w", [12, 14, 18])
def test_networks_of_narrow_images_at_every_split(w: int, device: Device) -> None:
    b = branching(w)
    model = b.model(*b.outputs)
    graph = check_against_onnxruntime(model)
    assert {8} < {layout.width for layout in image_layouts(graph).values()}
    check_every_split(model, graph, device)


def graph_of(*steps: tuple[AnyLayer, str, str] | tuple[AnyLayer, str, str, str]) -> Graph:
    """Layers with the names of their first input, their output and the operand of a second input or a residual."""
    nodes, tensors = [], {}
    for layer, first, output, *rest in steps:
        is_residual = "residual" in layer.epilogue
        others = tuple(rest) if not is_residual else ()
        nodes.append(Node(output, layer, first, rest[0] if is_residual else None, output, others=others))
        for name, size in zip((first, *others, output), (*layer.input_sizes, layer.output_size), strict=True):
            tensors.setdefault(name, Tensor(name, size, 1, size))
    return Graph(tensors, ["x"], [steps[-1][2]], nodes)


def widths_of(graph: Graph) -> dict[str, int | None]:
    return {name: layout.width for name, layout in image_layouts(graph).items() if name != "x"}


def test_what_is_joined_to_others_has_whole_tiles_and_so_has_what_it_is_computed_of() -> None:
    first, second = (conv(16, 16, 20, 8, 1) for _ in range(2))
    pool = Pool("average", 16, 16, 8, (3, 3), padding=(1, 1, 1, 1))
    joined = Concat(16, 16, (8, 8))
    graph = graph_of((first, "x", "a"), (second, "x", "b"), (pool, "a", "c"), (joined, "c", "d", "b"))
    assert widths_of(graph) == {"a": None, "b": None, "c": None, "d": None}
    dense = conv(16, 16, 8, 8, 3, padding=1)
    graph = graph_of((first, "x", "a"), (second, "x", "b"), (dense, "a", "c"), (joined, "c", "d", "b"))
    assert widths_of(graph) == {"a": 8, "b": None, "c": None, "d": None}


def test_channels_of_zeros_are_added_by_a_copy_where_that_lets_the_image_be_narrow() -> None:
    for channels, is_narrow in ((16, True), (20, False)):
        b = OnnxBuilder(x=(1, 3, 16, 16))
        image = b.add("Relu", b.add("Conv", "x", b.weights(channels, 3, 1, 1)))
        more = b.add("Pad", image, b.const([0, 0, 0, 0, 0, 32 - channels, 0, 0], "int64"))
        added = b.add("Add", more, b.add("Conv", image, b.weights(32, channels, 1, 1)))
        graph = check_against_onnxruntime(b.model(added))
        assert [isinstance(node.layer, Rearrange) for node in graph.nodes].count(True) == is_narrow
        assert (16 in widths_of(graph).values()) == is_narrow


def test_residuals_are_no_narrower_than_what_they_are_added_to() -> None:
    first, added = conv(16, 16, 20, 8, 1), conv(16, 16, 20, 8, 3, padding=1, epilogue=("residual",))
    graph = graph_of((first, "x", "a"), (added, "x", "b", "a"), (conv(16, 16, 8, 8, 1), "b", "c"))
    assert widths_of(graph) == {"a": 8, "b": 8, "c": 8}
    joined = Concat(16, 16, (8, 20))
    graph = graph_of((first, "x", "a"), (added, "x", "b", "a"), (joined, "b", "c", "x"))
    assert widths_of(graph) == {"a": None, "b": None, "c": None}
    odd = conv(30, 30, 20, 8, 1, stride=2), conv(15, 15, 8, 8, 1)
    assert widths_of(graph_of((odd[0], "x", "a"), (odd[1], "a", "b"))) == {"a": None, "b": None}
