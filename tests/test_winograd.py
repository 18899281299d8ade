"""Winograd's convolution: its transforms are exact in float64, its kernels compute every split on both targets."""

from dataclasses import replace

import numpy as np
import pytest
from halves import CPU, FEW_REGISTERS, GPU, NARROW_CPU, Half
from test_conv2d import conv

from tvm_coexec.layers import TILE, Conv2d, Hardware, ImageLayout, ImageLayouts, Variant
from tvm_coexec.runtime.device import Device
from tvm_coexec.schedules import conv2d, winograd
from tvm_coexec.schedules.winograd_kernels import spread_shape
from tvm_coexec.schedules.winograd_tiles import WinogradTiles
from tvm_coexec.schedules.winograd_transforms import INPUT, OUTPUT, WEIGHTS, apply

pytestmark = pytest.mark.slow

TOLERANCES = {2: 3e-6, 4: 5e-5}
LAYERS = [
    conv(9, 9, 20, 40, 3, padding=1, epilogue=("bias", "residual", "silu")),
    conv(14, 11, 33, 65, 3, padding=(0, 1, 1, 2), batch=2, epilogue=("bias", "sigmoid")),
    conv(8, 4, 16, 96, 3, padding=1, epilogue=("relu",)),
    conv(3, 3, 5, 32, 3),
]


@pytest.mark.parametrize("m", [2, 4])
def test_transforms_make_a_convolution(m: int) -> None:
    rng = np.random.default_rng(5)
    line, kernel = rng.normal(size=m + 2), rng.normal(size=3)
    products = np.array(WEIGHTS[m]) @ kernel * (np.array(INPUT[m]) @ line)
    np.testing.assert_allclose(np.array(OUTPUT[m]) @ products, np.correlate(line, kernel), rtol=1e-12)


@pytest.mark.parametrize("matrix", [*INPUT.values(), *OUTPUT.values()])
def test_shared_parts_do_not_change_a_transform(matrix: tuple[tuple[float, ...], ...]) -> None:
    values = np.random.default_rng(5).normal(size=len(matrix[0]))
    np.testing.assert_allclose(apply(matrix, list(values)), np.array(matrix) @ values, rtol=1e-12, atol=1e-14)


def first(layer: Conv2d, side: str, m: int, hardware: Hardware = CPU) -> Variant:
    return next(v for v in winograd.variants(layer, side, hardware, ImageLayouts.alone(layer)) if v["m"] == m)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_split_on_the_cpu(layer: Conv2d, m: int) -> None:
    assert Half(layer, first(layer, "cpu", m)).worst_error() < TOLERANCES[m]


@pytest.mark.parametrize("hardware", [CPU, FEW_REGISTERS], ids=["whole tiles", "half tiles"])
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("layer", LAYERS[:2], ids=str)
def test_every_split_in_opencl(layer: Conv2d, m: int, hardware: Hardware, device: Device) -> None:
    variant = first(layer, "gpu", m, hardware)
    assert dict(variant.params).get("channels", TILE) == (TILE if hardware is CPU else 16)
    half = Half(layer, variant, device)
    assert len(half.launches) == 1
    assert half.worst_error() < TOLERANCES[m]


@pytest.mark.parametrize("m", [2, 4])
def test_the_cores_of_a_cpu_device_share_blocks_or_groups(m: int, device: Device) -> None:
    layer = LAYERS[1]
    offered = winograd.variants(layer, "gpu", replace(CPU, workers=3), ImageLayouts.alone(layer))
    for shares_blocks in (True, False):
        *_, variant = (v for v in offered if v["m"] == m and ("workers" in dict(v.params)) == shares_blocks)
        half = Half(layer, variant, device)
        assert len(half.launches) == (1 if shares_blocks else 2)
        assert half.worst_error() < TOLERANCES[m]


@pytest.mark.parametrize("order", [0, 1])
def test_a_core_computes_one_block_after_the_other(order: int, device: Device) -> None:
    layer = conv(15, 15, 9, 40, 3, padding=1, epilogue=("bias",))
    shape = {"rows": 1, "lanes": 16, "channel_threads": 1, "row_threads": 1}
    variant = Variant.make("winograd", m=4, order=order, block_groups=2, workers=3, **shape)
    half = Half(layer, variant, device)
    assert half.launches[0].dispatch.groups(2) == 3
    assert half.worst_error() < TOLERANCES[4]


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("layer", [LAYERS[1], conv(19, 17, 24, 40, 3, padding=1, epilogue=("bias",))], ids=str)
def test_a_gpu_runs_three_kernels(layer: Conv2d, m: int, device: Device) -> None:
    half = Half(layer, first(layer, "gpu", m, GPU), device)
    assert len(half.launches) == 3
    assert half.worst_error() < TOLERANCES[m]


@pytest.mark.parametrize("rows", [1, 7, 8, 48])
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_points_lie_an_odd_number_of_vectors_apart(rows: int, lanes: int) -> None:
    layer = LAYERS[1]
    points, apart, width = spread_shape(WinogradTiles(layer, ImageLayouts.alone(layer), 4), rows, lanes)
    needed = rows * -(-layer.in_channels // lanes)
    assert (points, width) == (36, lanes)
    assert apart % 2 == 1 and needed <= apart <= needed + 1


@pytest.mark.parametrize("hardware", [CPU, NARROW_CPU], ids=["wide", "narrow"])
def test_the_search_space(hardware: Hardware) -> None:
    layer = conv(13, 13, 24, 64, 3, padding=1)
    variants = winograd.variants(layer, "cpu", hardware, ImageLayouts.alone(layer))
    assert len(variants) == len(set(variants)) >= 8
    for variant in variants:
        assert Half(layer, variant).error(0, 2) < TOLERANCES[variant["m"]], str(variant)


@pytest.mark.parametrize("side", ["cpu", "gpu"])
def test_weights_that_no_cache_holds_are_read_once(side: str) -> None:
    variant = first(conv(28, 28, 512, 512, 3, padding=1), side, 4)
    assert variant["order"] == 1  # point by point
    assert variant["block_groups"] * variant["rows"] >= 49  # one block holds all tiles


def test_blocks_stay_in_the_cache_beside_small_weights() -> None:
    layer = conv(224, 224, 64, 64, 3, padding=1)
    variant = first(layer, "cpu", 4)
    block_bytes = 4 * variant["block_groups"] * variant["rows"] * 36 * layer.in_channels
    assert block_bytes + winograd.weight_bytes(layer, variant) <= 1 << 20


def test_halos_wider_than_the_padding_are_left_alone(device: Device) -> None:
    layer = conv(6, 7, 9, 40, 3, padding=1, epilogue=("residual", "relu"))
    layouts = ImageLayouts(ImageLayout((3, 2)), ImageLayout((1, 4)), ImageLayout((2, 0)))
    for variant, where in ((first(layer, "cpu", 4), None), (first(layer, "gpu", 4), device)):
        assert Half(layer, variant, where, layouts).worst_error() < TOLERANCES[4]


def test_pixels_behind_the_halo_do_not_count() -> None:
    layer = conv(5, 5, 8, 32, 3, padding=1, batch=2)
    half = Half(layer, first(layer, "cpu", 4))
    pixels = half.buffers["input"].reshape(2, 7, 7, -1)
    pixels[0, 1:-1, 1:-1] *= 1e-6
    half.images["input"][0] *= 1e-6
    half.images["input"][1] *= 0
    expected = half.expected[0]
    half.kernels[0].run(0, 1)
    result = half.buffers["output"].reshape(2, 5, 5, 32)[0]
    assert np.abs(result - expected).max() < 5e-5 * np.abs(expected).max(), "the next image leaks into this one"


def test_what_winograd_does_not_know() -> None:
    for layer in (
        conv(8, 8, 16, 32, 3, stride=2, padding=1),
        conv(8, 8, 16, 32, 3, dilation=2),
        conv(8, 8, 16, 32, 3, groups=2),
        conv(8, 8, 16, 32, 5),
        conv(8, 8, 3, 32, 3),
    ):
        assert not winograd.can_compute(layer)
        assert {v.implementation for v in conv2d.variants(layer, "cpu", CPU)} == {"direct"}


def test_layers_with_few_pixels_are_computed_directly_first() -> None:
    many, few = conv(28, 28, 128, 128, 3, padding=1), conv(2, 2, 128, 128, 3, padding=1)
    assert conv2d.default_variant(many, "cpu", CPU).implementation == "winograd"
    assert conv2d.default_variant(few, "cpu", CPU).implementation == "direct"
