"""A GPU's dense kernels against float64, on CPU devices; their search space, its order, and what the predictors see."""

import math
from dataclasses import replace

import numpy as np
import pytest
from halves import GPU, Half
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_halves import LinearHalf
from slow import slow_except

from tvm_coexec.layers import TILE, Conv2d, Hardware, ImageLayout, ImageLayouts, Linear
from tvm_coexec.prediction.features import FeatureSet, Halves, Processor, describe
from tvm_coexec.runtime.device import Device
from tvm_coexec.schedules import conv2d, family, gpu_products
from tvm_coexec.schedules.few_rows import Reading
from tvm_coexec.schedules.plain_tiles import ImageTiling, PlainTiling
from tvm_coexec.schedules.product import Extents
from tvm_coexec.schedules.tiles import Tiling

TOLERANCE = 3e-6
LARGE = Hardware(64, 32, "gpu", 1024, workers=132, local_bytes=48 << 10)
SMALL = Hardware(16, 32, "gpu", 64, workers=2, local_bytes=16 << 10)
PHONE = Hardware(16, 32, "gpu", 512, workers=4, item_registers=170)
NO_LOCAL = Hardware(16, 32, "gpu", 384, workers=4, item_registers=66, reads_late=True, has_local_memory=False)

TILED = [
    (Linear(5, 33, 65, ("bias",)), Tiling(16, 32, 4, 4, 8)),
    (Linear(43, 64, 96, ("bias", "gelu", "residual")), Tiling(20, 64, 5, 8, 16, slices=2, parts=2)),
    (Linear(70, 96, 130, ("bias", "sigmoid")), Tiling(32, 32, 4, 4, 16, slices=2, parts=3)),
    (Linear(33, 100, 160, ("residual", "relu")), Tiling(32, 64, 8, 8, 16, parts=3)),
    (Linear(9, 4, 300), Tiling(16, 128, 4, 8, 32)),
    (Linear(3, 1, 1, ("silu",)), Tiling(8, 32, 2, 4, 8)),
]
PLAIN = [
    (Linear(5, 33, 65, ("bias",)), PlainTiling(16, 32, 4, 4)),
    (Linear(43, 64, 96, ("bias", "gelu", "residual")), PlainTiling(20, 64, 5, 8, parts=3)),
    (Linear(3, 1, 1, ("silu",)), PlainTiling(8, 32, 2, 4, parts=2)),
    (Linear(43, 64, 96, ("bias", "gelu", "residual")), ImageTiling(20, 64, 5, 8, parts=3)),
    (Linear(5, 1030, 65, ("bias",)), ImageTiling(16, 32, 4, 4)),
]
FEW = [
    (Linear(1, 256, 130, ("bias", "silu")), Reading(32, 16)),
    (Linear(3, 100, 65, ("bias", "residual", "relu")), Reading(16, 8, parts=3)),
    (Linear(5, 33, 65, ("bias", "gelu")), Reading(8, 16, parts=2)),
    (Linear(1, 1, 1, ("sigmoid",)), Reading(8, 16)),
    (Linear(16, 40, 32), Reading(32, 8, parts=2)),
]


def conv(
    h: int, w: int, channels: tuple[int, int], kernel: int, padding: int, stride: int = 1, **rest: object
) -> Conv2d:
    pads = (padding,) * 4
    return Conv2d(h, w, *channels, (kernel, kernel), (stride, stride), pads, **rest)  # type: ignore[arg-type]


CONVOLUTIONS = [
    (conv(9, 9, (64, 96), 3, 1, epilogue=("bias", "relu")), Tiling(32, 32, 4, 4, 16, slices=2, parts=3)),
    (conv(9, 10, (40, 70), 3, 1, 2, batch=2, epilogue=("bias", "residual")), Tiling(16, 64, 4, 4, 16, parts=3)),
    (conv(20, 17, (3, 70), 7, 3, 2, epilogue=("bias", "relu")), Tiling(32, 32, 4, 4, 8)),
    (conv(8, 9, (33, 64), 1, 0, batch=2, epilogue=("residual", "relu")), Tiling(32, 64, 8, 4, 16, parts=2)),
    (conv(30, 9, (64, 64), 1, 0, axis="lines", epilogue=("bias",)), Tiling(32, 64, 4, 8, 16, parts=2)),
    (conv(29, 9, (16, 65), 3, 1, axis="lines", epilogue=("residual",)), Tiling(28, 64, 7, 8, 16, slices=2)),
    (conv(17, 3, (6, 40), 3, 2, dilation=(2, 2)), Tiling(16, 32, 4, 4, 8, slices=4)),
    (conv(20, 17, (3, 70), 7, 3, 2, epilogue=("bias", "relu")), PlainTiling(32, 32, 4, 4)),
    (conv(9, 10, (40, 70), 3, 1, 2, batch=2, epilogue=("bias", "residual")), PlainTiling(16, 64, 4, 8, parts=3)),
    (conv(29, 9, (16, 65), 3, 1, axis="lines", epilogue=("residual",)), PlainTiling(28, 64, 7, 8)),
    (conv(9, 10, (40, 70), 3, 1, 2, batch=2, epilogue=("bias", "residual")), ImageTiling(16, 64, 4, 8, parts=3)),
]


@pytest.mark.parametrize(("layer", "kernel"), slow_except(TILED, 1) + slow_except(PLAIN) + slow_except(FEW, 1), ids=str)
def test_every_split_of_a_linear_layer(layer: Linear, kernel: Tiling | Reading, device: Device) -> None:
    assert LinearHalf(layer, kernel.variant(), device).worst_error() < TOLERANCE


@pytest.mark.parametrize(("layer", "tiling"), slow_except(CONVOLUTIONS, 1, 10), ids=str)
def test_every_split_of_a_convolution(layer: Conv2d, tiling: Tiling, device: Device) -> None:
    assert Half(layer, tiling.variant(), device).worst_error() < TOLERANCE


def test_a_pointwise_convolution_of_few_pixels(device: Device) -> None:
    layer = conv(1, 2, (48, 80), 1, 0, epilogue=("bias", "sigmoid"))
    assert Half(layer, Reading(16, 8, parts=2).variant(), device).worst_error() < TOLERANCE


def test_halos_and_other_parts_of_a_whole_are_left_alone(device: Device) -> None:
    layer, part = conv(5, 6, (3, 40), 3, 1, epilogue=("residual",)), ImageLayout((1, 4), parent_tiles=5, first_tile=2)
    layouts = ImageLayouts(ImageLayout((3, 2)), part, ImageLayout((2, 0)))
    variant = Tiling(16, 64, 4, 8, 8, parts=2).variant()
    assert Half(layer, variant, device, layouts).worst_error() < TOLERANCE


extents = st.builds(
    Extents, rows=st.integers(1, 4000), channels=st.integers(1, 3000), span=st.integers(1, 3000), taps=st.integers(1, 9)
)


@settings(max_examples=30)
@given(extents, st.sampled_from([LARGE, SMALL, PHONE, NO_LOCAL]))
def test_the_search_space_fits_the_device_and_is_ordered_by_the_bound(size: Extents, hardware: Hardware) -> None:
    found = gpu_products.variants(size, hardware)
    assert 4 <= len(found) == len(set(found)) <= 32
    bounds = [float(gpu_products.steps(size, one).cycles(hardware)[0]) for one in found]
    assert bounds == sorted(bounds) and math.isfinite(bounds[-1])
    for variant in found:
        needed = gpu_products.steps(size, variant)
        registers = needed.least_registers if hardware.reads_late else needed.registers
        assert registers[0] <= hardware.item_registers
        is_tiled = variant.implementation == ("tiles" if hardware.has_local_memory else "plain_tiles")
        tiling = Tiling if hardware.has_local_memory else PlainTiling
        local = tiling.of(variant).local_bytes if is_tiled else Reading.of(variant).local_bytes(size.rows)
        assert local <= (hardware.local_bytes if hardware.has_local_memory or not is_tiled else 4)
        assert gpu_products.dispatch(size, variant).group_size <= hardware.max_group_size
        assert is_tiled or (size.rows <= 16 and size.taps == 1)


def test_a_gpu_whose_work_groups_are_too_small_is_offered_nothing() -> None:
    assert gpu_products.variants(Extents(rows=49, channels=960, span=160), replace(PHONE, max_group_size=16)) == ()


def test_a_gpu_whose_items_have_fewer_registers_is_offered_smaller_tiles() -> None:
    size = Extents(rows=49, channels=960, span=160)
    by_device = [gpu_products.variants(size, replace(PHONE, item_registers=most)) for most in (170, 250)]
    most_needed = [max(gpu_products.steps(size, one).registers[0] for one in found) for found in by_device]
    assert most_needed[0] <= 170 < most_needed[1]


def test_a_gpu_whose_compiler_reads_late_is_offered_what_it_can_hold() -> None:
    few, many = Extents(rows=1, channels=1000, span=1280), Extents(rows=197, channels=768, span=768)
    early = replace(NO_LOCAL, reads_late=False)
    assert gpu_products.variants(few, NO_LOCAL)[0].implementation == "few_rows"
    assert all(one.implementation == "plain_tiles" for one in gpu_products.variants(few, early))
    most_sums = [
        max(gpu_products.accumulators(many, one) for one in gpu_products.variants(many, hardware))
        for hardware in (early, NO_LOCAL)
    ]
    assert most_sums == [8, 16]


def test_a_cpu_device_and_the_cpu_keep_their_own_kernels() -> None:
    for layer in (Linear(48, 64, 64), conv(14, 14, (64, 64), 3, 1)):
        for side, kind in (("cpu", "gpu"), ("cpu", "cpu"), ("gpu", "cpu")):
            found = family(layer).variants(layer, side, replace(LARGE, opencl_type=kind))
            assert not any(gpu_products.computes(variant) for variant in found)
        assert gpu_products.computes(family(layer).variants(layer, "gpu", LARGE)[0])


def test_channels_of_groups_have_no_tiles() -> None:
    grouped = conv(9, 9, (64, 64), 3, 1, groups=2)
    assert not any(gpu_products.computes(variant) for variant in conv2d.variants(grouped, "gpu", GPU))


@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_every_unit_of_a_half_has_a_work_group_and_no_work_group_is_spare(
    rows: int, tiles: int, data: st.DataObject
) -> None:
    size = Extents(rows, tiles * TILE, 512)
    tiling = data.draw(st.sampled_from([Tiling(32, 32, 4, 4, 16), Tiling(64, 128, 8, 8, 16, 1, 4)]))
    units = data.draw(st.integers(0, tiles))
    columns, lines = tiling.dispatch(size).grid_for(units)
    assert columns * tiling.columns >= units * TILE > (columns - 1) * tiling.columns
    assert lines == -(-rows // tiling.rows) * tiling.parts


def test_predictors_see_how_a_kernel_fills_the_compute_units() -> None:
    layer, tiling = Linear(197, 768, 768), Tiling(32, 64, 4, 8, 16, slices=2, parts=3)
    register_tile = family(layer).variants(layer, "gpu", LARGE)[-1]
    halves = Halves.grid(layer, [tiling.variant(), register_tile], np.array([3, 24]), np.array([21, 0]))
    described = describe(halves, "gpu", Processor(workers=132, local_bytes=48 << 10))
    expected = {
        "groups": [2 * 7 * 3, 12 * 7 * 3],
        "rounds": [1, 1],
        "steps": [8, 8],
        "unit_imbalance": [132 / 42, 264 / 252],
        "group_local_bytes": [tiling.local_bytes] * 2,
        "global_traffic": [42 * 8 * 4 * 96 * 32, 252 * 8 * 4 * 96 * 32],
        "accumulators": [32, 32],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(described[name][:2], values, err_msg=name)
    assert described["bound_cycles"][0] <= described["bound_cycles"][1] and not described["bound_cycles"][2:].any()
    assert "bound_cycles" in FeatureSet.for_halves(halves).names
    others = Halves.grid(layer, [register_tile], np.array([3]), np.array([21]))
    assert "bound_cycles" not in FeatureSet.for_halves(others).names
