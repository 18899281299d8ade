"""Kernels of pooling, concatenation, arithmetic and local normalisation against float64, on LLVM and in OpenCL."""

import json

import numpy as np
import pytest
from halves import CPU, GPU, NARROW_CPU, Half
from slow import slow_except

from tvm_coexec.layers import (
    Concat,
    Elementwise,
    Hardware,
    ImageLayout,
    ImageLayouts,
    LocalNorm,
    PixelLayer,
    Pool,
    Rearrange,
    Resize,
    layer_from_json,
    layer_to_json,
)
from tvm_coexec.runtime.device import Device
from tvm_coexec.schedules import images
from tvm_coexec.verification.reference import evaluate

TOLERANCE = 3e-6

POOLS = [
    Pool("max", 13, 11, 40, (3, 3), (2, 2), (1, 1, 1, 1), batch=2, epilogue=("relu",)),
    Pool("average", 9, 7, 70, (3, 3), (1, 1), (1, 1, 1, 1), batch=2, epilogue=("bias", "residual")),
    Pool("average", 8, 8, 33, (3, 2), (2, 1), (0, 1, 2, 0), count_padding=True),
    Pool("average", 9, 9, 33, (2, 3), (2, 2), (1, 2, 0, 2), (2, 3)),
    Pool("max", 9, 10, 32, (2, 3), (1, 2), (1, 2, 0, 1), (2, 2)),
    Pool("max", 6, 6, 65, (2, 2), (2, 2)),
    Pool("max", 7, 5, 33, (3, 1), padding=(1, 0, 1, 0)),
    Pool("average", 7, 7, 130, (7, 7), batch=2, epilogue=("sigmoid",)),
    Pool("max", 1, 1, 20, (1, 1), epilogue=("hard_swish",)),
    Pool("mean_square", 5, 6, 33, (5, 6), batch=2, epilogue=("inverse_root(0.01)",)),
]
MAPS = [
    Pool("max", 7, 9, 70, (1, 1), batch=2, epilogue=("bias", "residual", "silu")),
    Pool("average", 5, 8, 32, (1, 1), (2, 2), epilogue=("sigmoid",)),
    Elementwise("multiply", (2, 5, 7, 40), (2, 5, 7, 40), ("relu6",)),
    Elementwise("multiply", (2, 6, 7, 100), (2, 1, 1, 100), ("residual", "sigmoid")),
    Elementwise("multiply", (1, 1, 1, 64), (1, 1, 1, 64)),
    Elementwise("add", (2, 5, 7, 40), (2, 5, 7, 1), ("relu",)),
    Elementwise("subtract", (1, 3, 1, 70), (2, 3, 5, 70)),
    Elementwise("divide", (2, 4, 5, 70), (2, 4, 5, 70), ("clip(-9.0,9.0)",)),
    Elementwise("divide", (1, 4, 5, 33), (1, 1, 1, 1), ("leaky_relu(0.1)",)),
    Elementwise("maximum", (1, 4, 1, 40), (1, 1, 5, 40)),
    Elementwise("minimum", (1, 1, 1, 70), (3, 4, 5, 1)),
    Elementwise("maximum", (1, 17, 6, 40), (1, 17, 6, 40), ("residual",), "lines"),
    Elementwise("subtract", (1, 1, 9, 40), (1, 15, 9, 1), axis="lines"),
]
CONCATS = [
    Concat(5, 7, (32, 64, 20), batch=2),
    Concat(4, 7, (48, 16, 208)),
    Concat(3, 5, (20, 44, 30), batch=2),
    Concat(3, 3, (7, 1, 33)),
    Concat(5, 5, (40,)),
]
NORMS = [
    LocalNorm(5, 7, 70, 5, 0.9, 0.75, 1.0, batch=2, epilogue=("relu",)),
    LocalNorm(3, 3, 64, 2, 0.5, 0.6, 2.0),
    LocalNorm(2, 3, 96, 70, 2.0, 1.25, 0.5, epilogue=("residual",)),
    LocalNorm(2, 2, 512, 40, 1.5, 0.75, 1.0),
    LocalNorm(5, 5, 96, 5, 1.5, 0.75, 1.0),
]
MOVES = [
    Rearrange((2, 5, 7, 40), (2, 3, 4, 40), ((0, 2, 0, 1), (1, 3, 1, 1), (2, 4, 2, 1), (3, 40, 3, 1)), (0, 1, 2, 0)),
    Rearrange(
        (1, 5, 7, 70), (1, 3, 4, 33), ((1, 3, 1, 2), (2, 4, 2, 2), (3, 33, 3, 1)), (0, 0, 0, 5), epilogue=("relu",)
    ),
    Rearrange((1, 4, 4, 40), (1, 6, 7, 56), ((1, 6, 1, 1), (2, 7, 2, 1), (3, 56, 3, 1)), (0, -1, -2, -8), fill=0.5),
    Rearrange(
        (2, 3, 4, 160),
        (2, 6, 8, 40),
        ((0, 2, 0, 1), (1, 3, 1, 1), (1, 2, 3, 80), (2, 4, 2, 1), (2, 2, 3, 40), (3, 40, 3, 1)),
        epilogue=("bias", "residual"),
    ),
    Rearrange((1, 3, 4, 36), (1, 6, 8, 9), ((1, 3, 1, 1), (1, 2, 3, 2), (2, 4, 2, 1), (2, 2, 3, 1), (3, 9, 3, 4))),
    Rearrange((1, 6, 8, 10), (1, 3, 4, 40), ((1, 3, 1, 2), (2, 4, 2, 2), (3, 2, 1, 1), (3, 2, 2, 1), (3, 10, 3, 1))),
    Rearrange((1, 3, 4, 66), (1, 3, 4, 66), ((1, 3, 1, 1), (2, 4, 2, 1), (3, 33, 3, 1), (3, 2, 3, 33))),
    Rearrange((1, 3, 4, 33), (1, 6, 8, 33), ((1, 3, 1, 1), (1, 2, 1, 0), (2, 4, 2, 1), (2, 2, 2, 0), (3, 33, 3, 1))),
    Rearrange(
        (1, 4, 5, 128),
        (1, 6, 9, 32),
        ((1, 4, 1, 1), (1, 2, 3, 64), (2, 5, 2, 1), (2, 2, 3, 32), (3, 32, 3, 1)),
        starts=(0, 1, 1, 0),
    ),
    Rearrange((1, 24, 1, 32), (1, 24, 1, 32), ((1, 6, 1, -1), (1, 4, 1, 6), (3, 32, 3, 1)), (0, 5, 0, 0)),
]
SIZES = [
    Resize((2, 4, 5, 40), 8, 10, (0.5, 0.5), (-0.25, -0.25), ("relu",)),
    Resize((1, 3, 7, 33), 5, 4, (0.5, 2.0), epilogue=("residual",)),
    Resize((1, 1, 4, 64), 3, 9, (0.0, 3 / 8)),
]
LAYERS: list[PixelLayer] = [*POOLS, *MAPS, *CONCATS, *NORMS, *MOVES, *SIZES]
EVERY_THIRD = range(0, len(LAYERS), 3)
"""Layers of which --quick computes every split: some of each kind."""


@pytest.mark.parametrize("layer", slow_except(LAYERS, *EVERY_THIRD[::2]), ids=str)
def test_every_split_on_the_cpu(layer: PixelLayer) -> None:
    assert Half(layer, images.default_variant(layer, "cpu", CPU)).worst_error() < TOLERANCE


IN_OPENCL = [*POOLS[:4], *MAPS[2:], *CONCATS[1:4], NORMS[0], NORMS[3], *MOVES, *SIZES]


@pytest.mark.parametrize("layer", slow_except(IN_OPENCL, *EVERY_THIRD[::3]), ids=str)
def test_every_split_in_opencl(layer: PixelLayer, device: Device) -> None:
    assert Half(layer, images.default_variant(layer, "gpu", CPU), device).worst_error() < TOLERANCE


@pytest.mark.parametrize(
    "layer", slow_except([POOLS[1], CONCATS[2], MAPS[3], MOVES[1], MOVES[3], SIZES[0]], 0), ids=str
)
def test_work_groups_of_a_gpu(layer: PixelLayer, device: Device) -> None:
    found = images.variants(layer, "gpu", GPU)
    for variant in found[:: max(1, len(found) // 2)]:
        assert Half(layer, variant, device).error(0, layer.units) < TOLERANCE, str(variant)


@pytest.mark.parametrize("layer", slow_except([POOLS[0], POOLS[1], CONCATS[1]], 1), ids=str)
@pytest.mark.parametrize("hardware", [CPU, NARROW_CPU], ids=["wide", "narrow"])
def test_the_search_space(layer: PixelLayer, hardware: Hardware) -> None:
    found = images.variants(layer, "cpu", hardware)
    assert len(found) == len(set(found)) >= 2
    for variant in found:
        assert Half(layer, variant).error(0, layer.units) < TOLERANCE, str(variant)


IN_HALOS = [POOLS[0], POOLS[1], MAPS[0], MAPS[3], *MAPS[5:9], CONCATS[2], NORMS[0], *MOVES[:5], SIZES[0]]


@pytest.mark.parametrize("layer", slow_except(IN_HALOS, 0, 3, 8, 9, 13, 15), ids=str)
def test_halos_are_left_alone(layer: PixelLayer) -> None:
    others = (ImageLayout((1, 3)), ImageLayout((0, 2)))[: len(layer.input_sizes) - 1]
    halos = ImageLayouts(ImageLayout((2, 1)), ImageLayout((1, 4)), ImageLayout((2, 0)), others)
    assert Half(layer, images.variants(layer, "cpu", CPU)[0], None, halos).worst_error() < TOLERANCE


@pytest.mark.parametrize("halo", [(0, 0), (1, 2)])
def test_one_operand_is_copied_to_another_layout(halo: tuple[int, int], device: Device) -> None:
    narrow = ImageLayouts(ImageLayout(halo, width=3), ImageLayout((3, 3)))
    layer = Concat(6, 5, (3,), batch=2)
    assert Half(layer, images.variants(layer, "cpu", CPU)[0], None, narrow).worst_error() == 0
    assert Half(layer, images.variants(layer, "gpu", CPU)[0], device, narrow).worst_error() == 0


@pytest.mark.slow
@pytest.mark.parametrize("layer", NORMS, ids=str)
def test_a_local_norm_reads_nothing_beside_the_image(layer: LocalNorm) -> None:
    for variant in {variant["rows"]: variant for variant in images.variants(layer, "cpu", CPU)}.values():
        assert Half(layer, variant).error(0, layer.units) < TOLERANCE, str(variant)


def test_a_maximum_below_zero_is_not_the_padding() -> None:
    layer = Pool("max", 5, 5, 32, (3, 3), (2, 2), (1, 1, 1, 1))
    layouts = ImageLayouts(ImageLayout((1, 1)))
    half = Half(layer, images.variants(layer, "cpu", CPU)[0], None, layouts)
    for array in (half.images["input"], half.buffers["input"]):
        np.copyto(array, -np.abs(array) - (array != 0))
    assert half.expected.max() < -1
    assert half.error(0, 1) < TOLERANCE


def test_many_operands_keep_their_order(device: Device) -> None:
    layer = Concat(2, 3, tuple(range(1, 13)))
    assert Half(layer, images.default_variant(layer, "gpu", CPU), device).error(0, layer.units) == 0


def test_aligned_operands_are_copied_by_whole_vectors() -> None:
    aligned, ragged = Concat(4, 4, (64, 32, 20)), Concat(4, 4, (48, 16, 208))
    assert images.default_variant(aligned, "cpu", CPU)["channels"] == 32
    assert images.default_variant(ragged, "cpu", CPU)["channels"] == 16
    assert images.default_variant(ragged, "gpu", CPU)["lanes"] == 16


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers_become_plain_values_and_back(layer: PixelLayer) -> None:
    assert layer_from_json(json.loads(json.dumps(layer_to_json(layer)))) == layer


def test_the_product_s_own_reference_agrees_on_some_pixels() -> None:
    for layer in LAYERS:
        half = Half(layer, images.default_variant(layer, "cpu", CPU))
        expected = half.expected.reshape(-1, layer.out_channels)
        pixels = np.arange(0, len(expected), 3)
        residual = {"residual": half.images["residual"].reshape(expected.shape)[pixels]}
        result = evaluate(layer, half.images | half.params | residual, pixels)
        np.testing.assert_allclose(result, expected[pixels], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("layer", "layouts", "message"),
    [
        (CONCATS[0], ImageLayouts(), "3 inputs of a concat need as many layouts"),
        (
            POOLS[0],
            ImageLayouts(ImageLayout(width=8)),
            "a pool that writes 32 channels of a pixel cannot",
        ),
        (POOLS[0], ImageLayouts(output=ImageLayout(width=3)), "none can have 3"),
        (CONCATS[0], ImageLayouts(output=ImageLayout(width=8), others=(ImageLayout(),) * 2), "neither output nor"),
        (NORMS[0], ImageLayouts(ImageLayout(width=8)), "neither narrow nor a slice"),
    ],
)
def test_layouts_that_no_kernel_reads_are_refused(layer: PixelLayer, layouts: ImageLayouts, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images.build(layer, "cpu", images.default_variant(layer, "cpu", CPU), layouts)


@pytest.mark.parametrize("kind", ["max", "maximum", "minimum"])
def test_an_extremum_is_none_where_an_operand_is_and_is_computed_in_vectors(kind: str) -> None:
    size = (1, 5, 5, 40)
    layer = Pool("max", 5, 5, 40, (2, 2)) if kind == "max" else Elementwise(kind, size, size)
    half = Half(layer, images.variants(layer, "cpu", CPU)[0])
    for number in range(len(layer.input_sizes)):
        image = half.buffers[f"input{number or ''}"].reshape(5, 5, -1)
        image[number, 1:3, 5::7] = np.nan
        half.images[f"input{number or ''}"][0] = image[..., :40]
    half.kernels[0].run(0, layer.units)
    rows = half.buffers["output"].reshape(layer.out_h, layer.out_w, -1)[..., :40]
    wanted = half.expected if kind == "max" else getattr(np, kind)(half.images["input"], half.images["input1"])
    np.testing.assert_array_equal(rows, wanted[0].astype(np.float32))
    assert np.isnan(rows).any() and not np.isnan(rows).all()
    assert "isnan" not in half.launches[0].module.script(), "TVM makes no vectors of it"
