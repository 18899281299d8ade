"""Kernels of pooling, concatenation, products and local normalisation against float64, on LLVM and in OpenCL."""

import pytest
from halves import CPU, GPU, NARROW_CPU, Half

from tvm_coexec.layers import (
    Concat,
    Hardware,
    ImageLayout,
    ImageLayouts,
    LocalNorm,
    Pool,
    Product,
    Variant,
    layer_from_json,
    layer_to_json,
)
from tvm_coexec.runtime.device import Device
from tvm_coexec.schedules import images
from tvm_coexec.schedules.image_geometry import ImageLayer

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
]
MAPS = [
    Pool("max", 7, 9, 70, (1, 1), batch=2, epilogue=("bias", "residual", "silu")),
    Pool("average", 5, 8, 32, (1, 1), (2, 2), epilogue=("sigmoid",)),
    Product(5, 7, 40, batch=2, epilogue=("relu6",)),
    Product(6, 7, 100, per_image=True, batch=2, epilogue=("residual", "sigmoid")),
    Product(1, 1, 64, per_image=True),
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
]
LAYERS: list[ImageLayer] = [*POOLS, *MAPS, *CONCATS, *NORMS]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_split_on_the_cpu(layer: ImageLayer) -> None:
    assert Half(layer, images.default_variant(layer, "cpu", CPU)).worst_error() < TOLERANCE


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_split_in_opencl(layer: ImageLayer, device: Device) -> None:
    assert Half(layer, images.default_variant(layer, "gpu", CPU), device).worst_error() < TOLERANCE
