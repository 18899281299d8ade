"""Direct and depthwise convolutions against float64: shapes, splits, layouts and the search space, on both targets."""

from typing import Any

import numpy as np
import pytest
from halves import CPU, GPU, NARROW_CPU, Half
from onnx_builder import OnnxBuilder, random_inputs, run_onnx
from slow import slow_except

import tvm_coexec
from tvm_coexec.layers import TILE, Conv2d, Hardware, ImageLayout, ImageLayouts, Variant, layer_to_json
from tvm_coexec.runtime.device import Device
from tvm_coexec.schedules import conv2d, conv2d_direct
from tvm_coexec.schedules.pixels import Pixels

TOLERANCE = 3e-6


def conv(h: int, w: int, in_channels: int, out_channels: int, kernel: Any, **rest: Any) -> Conv2d:
    """A convolution of odd sizes in few words; numbers stand for pairs."""
    return Conv2d(h, w, in_channels, out_channels, kernel, **rest)


LAYERS = [
    conv(5, 5, 3, 40, 3, padding=1, epilogue=("bias",)),
    conv(11, 13, 2, 33, 7, padding=3, stride=2, batch=2),
    conv(9, 11, 20, 70, 3, padding=1, stride=2, batch=2, epilogue=("bias", "residual", "relu")),
    conv(7, 7, 36, 130, 1, epilogue=("bias", "sigmoid")),
    conv(6, 5, 8, 64, 1, batch=3, epilogue=("residual", "relu6")),
    conv(8, 6, 16, 48, (1, 7), padding=(0, 3), epilogue=("bias", "hard_swish")),
    conv(17, 17, 5, 48, (7, 1), padding=(3, 0)),
    conv(9, 10, 6, 96, 3, padding=2, dilation=2),
    conv(12, 3, 3, 32, 3, padding=(0, 2), dilation=(1, 2)),
    conv(9, 9, 24, 72, 3, padding=1, groups=3),
    conv(6, 6, 64, 128, 3, padding=1, groups=2, epilogue=("silu",)),
    conv(5, 6, 20, 80, 3, groups=20, padding=(0, 1, 1, 2)),
    conv(3, 3, 40, 65, 3, padding=1, batch=3),
    conv(1, 1, 48, 80, 1, epilogue=("bias", "sigmoid")),
    conv(4, 4, 33, 64, 4),
    conv(6, 6, 3, 3, 3, padding=1, groups=3),
]
DEPTHWISE = [
    conv(9, 9, 65, 65, 3, padding=1, groups=65, epilogue=("bias", "relu6")),
    conv(10, 7, 32, 32, 5, padding=2, stride=2, groups=32, batch=2, epilogue=("bias", "residual")),
    conv(3, 17, 96, 96, (1, 3), padding=(0, 2), dilation=(1, 2), groups=96, epilogue=("sigmoid",)),
    conv(7, 7, 40, 40, 7, groups=40),
]


def variants(layer: Conv2d, side: str, hardware: Hardware = CPU) -> list[Variant]:
    """The search space without Winograd's variants, which have tests of their own."""
    return [v for v in conv2d.variants(layer, side, hardware) if v.implementation != "winograd"]


@pytest.mark.parametrize("layer", slow_except(LAYERS, 0, 3, 7, 9, 11) + slow_except(DEPTHWISE, 0), ids=str)
def test_every_split_on_the_cpu(layer: Conv2d) -> None:
    assert Half(layer, variants(layer, "cpu")[0]).worst_error() < TOLERANCE


@pytest.mark.parametrize("layer", slow_except(LAYERS[::2], 0, 1, 3) + slow_except(DEPTHWISE[1:], 0), ids=str)
def test_every_split_in_opencl(layer: Conv2d, device: Device) -> None:
    assert Half(layer, variants(layer, "gpu")[0], device).worst_error() < TOLERANCE


@pytest.mark.parametrize("groups", [1, 64])
def test_what_reads_padding_alone(groups: int, device: Device) -> None:
    """TVM leaves out the parameters of its kernels that hold the input and the weights."""
    b = OnnxBuilder(x=(1, 64, 1, 1))
    weights, attributes = b.weights(64, 64 // groups, 2, 2), {"dilations": [2, 2], "pads": [1, 1, 1, 1]}
    model = b.model(b.add("Conv", "x", weights, b.weights(64), group=groups, **attributes))
    x = random_inputs(model)
    (expected,) = run_onnx(model, x).values()
    for split in (0.0, 0.5, 1.0):
        result = tvm_coexec.build(model, device=device, split=split)(**x)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [LAYERS[2], LAYERS[9], DEPTHWISE[0]], ids=str)
def test_work_groups_of_a_gpu(layer: Conv2d, device: Device) -> None:
    found = variants(layer, "gpu", GPU)
    for variant in found[:: max(1, len(found) // 4)]:
        assert Half(layer, variant, device).error(0, layer.units) < TOLERANCE, str(variant)


SEARCHED = [LAYERS[2], LAYERS[3], conv(7, 7, 8, 40, 3, padding=1), DEPTHWISE[0]]


@pytest.mark.slow
@pytest.mark.parametrize("layer", slow_except(SEARCHED, 2), ids=str)
@pytest.mark.parametrize("hardware", [CPU, NARROW_CPU], ids=["wide", "narrow"])
def test_the_search_space(layer: Conv2d, hardware: Hardware) -> None:
    found = variants(layer, "cpu", hardware)
    assert len(found) == len(set(found)) >= 6
    for variant in found[::3]:
        assert Half(layer, variant).error(0, layer.units) < TOLERANCE, str(variant)


HALOS = ImageLayouts(ImageLayout((3, 2)), ImageLayout((1, 4)), ImageLayout((2, 0)))
IN_HALOS = [
    conv(6, 7, 3, 40, 1, batch=2, epilogue=("residual", "relu")),
    conv(5, 5, 34, 33, 3, padding=1, epilogue=("residual",)),
    conv(5, 9, 33, 33, 3, padding=1, stride=2, groups=33, epilogue=("residual", "silu")),
]


@pytest.mark.parametrize("layer", IN_HALOS, ids=str)
def test_halos_wider_than_the_padding_are_left_alone(layer: Conv2d) -> None:
    assert Half(layer, variants(layer, "cpu")[0], None, HALOS).worst_error() < TOLERANCE


@pytest.mark.parametrize("layer", slow_except(IN_HALOS[:2], 0), ids=str)
def test_halos_are_left_alone_in_opencl(layer: Conv2d, device: Device) -> None:
    assert Half(layer, variants(layer, "gpu", GPU)[0], device, HALOS).worst_error() < TOLERANCE


@pytest.mark.parametrize(("channels", "width"), [(1, 2), (3, 2), (2, 3), (3, 4)])
def test_few_channels_of_an_inner_image_are_all_read(channels: int, width: int) -> None:
    """Variants are chosen as if the image were an input, whose pixels of few channels have no padding channels."""
    layer = conv(3, 5, channels, 3, (1, width))
    for variant in variants(layer, "cpu")[:2]:
        assert Half(layer, variant, None, ImageLayouts()).error(0, 1) < TOLERANCE, str(variant)


@pytest.mark.parametrize("skip", [0, conv2d_direct.SKIP_LINES, conv2d_direct.SKIP_COLUMNS])
def test_taps_outside_the_image_may_be_left_out(skip: int) -> None:
    layer = conv(7, 7, 6, 32, 5, padding=2)
    params = {"rows": 7, "channels": 32, "k_split": 1, "order": 0, "unroll": 1}
    half = Half(layer, Variant.make("direct", skip=skip, **params))
    assert half.error(0, 1) < TOLERANCE
    half.buffers["input"][:] = np.where(half.buffers["input"] == 0, np.float32(1), half.buffers["input"])
    assert (half.error(0, 1) < TOLERANCE) == (skip == conv2d_direct.SKIP_COLUMNS), "the halo is read if taps are not"


def test_layouts_that_no_kernel_reads_are_refused() -> None:
    layer = conv(8, 8, 8, 32, 3, padding=(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"halo \(1, 2\) is narrower than the padding"):
        Pixels(layer, ImageLayouts(ImageLayout((1, 2))), 8, 8)
    with pytest.raises(ValueError, match="an image of 8 channels cannot have pixels of 4"):
        Pixels(layer, ImageLayouts(ImageLayout((2, 2), width=4)), 8, 8)
    with pytest.raises(ValueError, match="none can have 16"):
        Pixels(layer, ImageLayouts(ImageLayout((2, 2)), ImageLayout(width=16)), 8, 8)


def test_numbers_stand_for_pairs() -> None:
    layer = conv(8, 9, 4, 8, 3, stride=2, padding=1)
    assert layer == Conv2d(8, 9, 4, 8, (3, 3), (2, 2), (1, 1, 1, 1))
    assert (layer.out_h, layer.out_w, layer.units) == (4, 5, 1)
    assert layer.flops == 2 * 4 * 5 * 8 * 36
    assert layer_to_json(layer)["padding"] == [1, 1, 1, 1]
    assert conv(8, 9, 4, 8, (1, 3), padding=(0, 1)).padding == (0, 1, 0, 1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"kernel": 0}, "at least 1"),
        ({"kernel": 3, "padding": -1}, "paddings at least 0"),
        ({"kernel": 3, "groups": 3}, "3 groups do not divide"),
        ({"kernel": 9}, "does not fit"),
        ({"kernel": (1, 2, 3)}, "neither one number nor 2"),
        ({"kernel": 1, "epilogue": ("swish",)}, "unknown epilogue step"),
    ],
)
def test_impossible_convolutions_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conv(8, 8, 4, 32, **sizes)


@pytest.mark.parametrize("side", ["cpu", "gpu"])
def test_parts_of_a_tile_without_channels_are_left_out(side: str) -> None:
    ragged, whole = conv(9, 9, 8, 48, 1), conv(9, 9, 8, 64, 1)
    assert dict(variants(ragged, side)[0].params)["channels"] == 16
    assert all(dict(v.params).get("channels", 32) == 32 for v in variants(whole, "gpu"))


@pytest.mark.parametrize("implementation", ["direct", "depthwise"])
def test_a_tile_of_a_depthwise_layer_reads_its_own_channels_alone(implementation: str) -> None:
    layer = conv(5, 6, 80, 80, 3, padding=1, groups=80)
    variant = next(v for v in variants(layer, "cpu") if v.implementation == implementation)
    half = Half(layer, variant)
    tiles = half.buffers["input"][: 7 * 8 * 3 * TILE].reshape(-1, 3, TILE)
    tiles[:, :2] = np.nan
    assert half.error(2, 3) < TOLERANCE


@pytest.mark.parametrize(("hardware", "registers"), [(Hardware(16, 32, "gpu", 256, 1), 16), (NARROW_CPU, None)])
def test_a_short_reduction_leaves_registers_of_narrow_vectors_for_what_is_read_ahead(
    hardware: Hardware, registers: int | None
) -> None:
    layer = conv(17, 17, 3, 32, 3, padding=1, stride=2)
    for variant in variants(layer, "cpu", hardware):
        sums = variant["rows"] * variant["channels"] // hardware.lanes * variant["k_split"]
        assert sums <= (registers or hardware.vector_registers)
    assert Half(layer, variants(layer, "cpu", hardware)[0]).worst_error() < TOLERANCE


@pytest.mark.parametrize("in_order", [False, True])
def test_kernels_of_narrow_vectors_leave_registers_for_what_is_read_ahead(in_order: bool) -> None:
    """LLVM keeps sums on the stack where more registers are taken: Winograd's products, and all on cores in order."""
    hardware = Hardware(16, 32, "gpu", 256, 1, in_order=in_order)
    most = {"winograd": 16 if in_order else 20, "direct": 20 if in_order else 28, "depthwise": 14}
    for layer in (conv(17, 17, 64, 64, 3, padding=1), conv(17, 17, 64, 64, 3, padding=1, groups=64)):
        space = variants(layer, "cpu", hardware)
        for variant in space:
            assert variant["rows"] * variant["channels"] // hardware.lanes <= most[variant.implementation]
        for implementation in {variant.implementation for variant in space}:
            first = next(variant for variant in space if variant.implementation == implementation)
            assert Half(layer, first).worst_error() < TOLERANCE
    dense = variants(conv(14, 14, 512, 128, 1), "cpu", hardware)[0]
    assert dense["order"] == in_order and dense["unroll"] == 4
