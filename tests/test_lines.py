"""Layers divided by lines of their output: every split against float64, on both targets."""

from dataclasses import replace

import pytest
from halves import CPU, GPU, NARROW_CPU, Half
from test_conv2d import conv

from tvm_coexec.layers import (
    Conv2d,
    Hardware,
    ImageLayout,
    ImageLayouts,
    Pool,
    Variant,
    along_partition_axes,
    by_lines,
    layer_from_json,
    layer_to_json,
    line_block,
)
from tvm_coexec.runtime.device import Device
from tvm_coexec.schedules import family
from tvm_coexec.schedules.winograd_tiles import WinogradTiles

pytestmark = pytest.mark.slow

EPILOGUE = ("bias", "residual", "relu6")
LAYERS: list[Conv2d | Pool] = [
    conv(28, 9, 20, 40, 1, epilogue=EPILOGUE),
    conv(15, 9, 20, 40, 1, epilogue=EPILOGUE),
    conv(31, 7, 3, 33, 3, padding=1, epilogue=("bias", "sigmoid")),
    conv(57, 5, 8, 40, 3, padding=1, stride=2, epilogue=("residual",)),
    conv(58, 4, 6, 32, (3, 1), padding=(2, 0), dilation=(2, 1)),
    conv(30, 6, 40, 40, 3, padding=1, groups=40, epilogue=("bias", "relu6")),
    conv(61, 11, 36, 36, 3, padding=1, stride=2, groups=36),
    Pool("max", 61, 9, 40, (3, 3), (2, 2), (1, 1, 1, 1)),
    Pool("average", 29, 5, 33, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=("relu",)),
]
WINOGRAD = [conv(30, 9, 20, 40, 3, padding=1, epilogue=EPILOGUE), conv(59, 6, 17, 65, 3, padding=(0, 1))]
TOLERANCE, WINOGRAD_TOLERANCE = 3e-6, 5e-5


def divided(layer: Conv2d | Pool) -> Conv2d | Pool:
    lines = by_lines(layer)
    assert lines is not None
    return lines


def variants(layer: Conv2d | Pool, side: str, hardware: Hardware, implementation: str | None = None) -> list[Variant]:
    found: list[Variant] = family(layer).variants(layer, side, hardware)
    wanted = implementation or next(one.implementation for one in found if one.implementation != "winograd")
    return [one for one in found if one.implementation == wanted]


@pytest.mark.parametrize("hardware", [CPU, NARROW_CPU], ids=["wide", "narrow"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_split_on_the_cpu(layer: Conv2d | Pool, hardware: Hardware) -> None:
    layer = divided(layer)
    for variant in variants(layer, "cpu", hardware)[::4]:
        assert Half(layer, variant).worst_error() < TOLERANCE, str(variant)


@pytest.mark.parametrize("hardware", [CPU, GPU], ids=["cpu device", "gpu"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_split_in_opencl(layer: Conv2d | Pool, hardware: Hardware, device: Device) -> None:
    layer = divided(layer)
    found = variants(layer, "gpu", hardware)
    for variant in found[:: max(1, len(found) // 2)]:
        assert Half(layer, variant, device).worst_error() < TOLERANCE, str(variant)


@pytest.mark.parametrize("layer", WINOGRAD, ids=str)
def test_every_split_of_winograd_on_the_cpu(layer: Conv2d) -> None:
    layer = divided(layer)
    for variant in variants(layer, "cpu", CPU, "winograd")[::3]:
        assert Half(layer, variant).worst_error() < WINOGRAD_TOLERANCE, str(variant)


@pytest.mark.parametrize("layer", WINOGRAD, ids=str)
def test_every_split_of_winograd_in_opencl(layer: Conv2d, device: Device) -> None:
    layer = divided(layer)
    found = variants(layer, "gpu", CPU, "winograd")
    for variant in found[:: max(1, len(found) // 3)]:
        assert Half(layer, variant, device).worst_error() < WINOGRAD_TOLERANCE, str(variant)


def test_a_gpu_divides_winograd_by_channels_alone() -> None:
    layer = divided(WINOGRAD[1])
    assert not variants(layer, "gpu", GPU, "winograd")
    assert variants(layer, "gpu", GPU)


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[3], WINOGRAD[0]], ids=str)
def test_halos_and_other_parts_of_a_whole_are_left_alone(layer: Conv2d) -> None:
    layer = divided(layer)
    part = ImageLayout((1, 4), parent_tiles=5, first_tile=2)
    layouts = ImageLayouts(ImageLayout((3, 2)), part, ImageLayout((2, 0)))
    for implementation in {one.implementation for one in family(layer).variants(layer, "cpu", CPU)}:
        half = Half(layer, variants(layer, "cpu", CPU, implementation)[0], None, layouts)
        assert half.worst_error() < WINOGRAD_TOLERANCE


def test_the_cores_of_a_cpu_device_share_the_blocks_of_half_an_image(device: Device) -> None:
    layer = divided(conv(56, 28, 16, 40, 3, padding=1))
    found = variants(layer, "gpu", replace(CPU, workers=3), "winograd")
    for variant in found:
        tiles = WinogradTiles(layer, ImageLayouts.alone(layer), variant["m"]).count
        assert tiles / 2 > 2 * variant["rows"] * variant["block_groups"], str(variant)
    assert Half(layer, found[0], device).worst_error() < WINOGRAD_TOLERANCE


def test_work_groups_of_a_gpu_fit_a_unit() -> None:
    layer = divided(conv(14, 14, 64, 64, 1))
    chosen = variants(layer, "gpu", replace(GPU, max_group_size=256))[0]
    assert family(layer).dispatch(layer, "gpu", chosen).padded_rows <= 1.25 * 14 * 14


def test_a_layer_by_channels_is_described_as_ever() -> None:
    layer = conv(28, 28, 8, 8, 1)
    assert "axis" not in layer_to_json(layer)
    for way in along_partition_axes(layer):
        assert layer_from_json(layer_to_json(way)) == way
    assert along_partition_axes(divided(layer)) == (divided(layer),)


def test_what_is_divided_by_lines() -> None:
    assert by_lines(conv(28, 28, 8, 8, 1)) == conv(28, 28, 8, 8, 1, axis="lines")
    assert by_lines(conv(28, 28, 8, 8, 3)) is not None
    assert by_lines(conv(15, 28, 8, 8, 3)) is None, "13 lines are too few"
    assert by_lines(conv(28, 28, 8, 8, 1, batch=2)) is None
    assert [line_block(lines) for lines in (14, 28, 55, 56, 224)] == [1, 2, 2, 4, 4]
    assert conv(57, 28, 8, 200, 1, axis="lines").units == 15
    with pytest.raises(ValueError, match="only a single image of 14 lines or more"):
        conv(13, 28, 8, 8, 1, axis="lines")
    with pytest.raises(ValueError, match="channels or lines, not 'rows'"):
        Pool("max", 28, 28, 8, (1, 1), axis="rows")
