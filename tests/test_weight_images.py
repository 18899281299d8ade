"""Weights that GPU kernels read as images over buffers: the text of such kernels, modules that have them, devices."""

from dataclasses import replace

import numpy as np
import pytest
from slow import slow_except

from tvm_coexec import schedules
from tvm_coexec.compiler.probes import single_layer
from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import CoexecError
from tvm_coexec.layers import IMAGE_WIDTH, Conv2d, Hardware, Linear
from tvm_coexec.module.package import Package
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.module import Module
from tvm_coexec.schedules import gpu_products
from tvm_coexec.schedules.plain_tiles import ImageTiling
from tvm_coexec.schedules.product import Extents
from tvm_coexec.schedules.weight_images import fits_image, with_images

ADRENO = Hardware(16, 32, "gpu", 1024, workers=12, item_registers=170, image_rows=16384)
LAYERS = [Linear(9, 70, 130, ("bias", "gelu")), Conv2d(9, 8, 33, 96, 3, 1, 1, epilogue=("bias", "relu"))]


def module_of(layer: Linear | Conv2d, device: Device) -> Package:
    target = target_for(device.facts())
    cpu = schedules.family(layer).default_variant(layer, "cpu", target.hardware)
    return single_layer(layer, cpu, ImageTiling(16, 32, 4, 4, parts=2).variant(), target, device.facts())


def test_reads_become_those_of_pixels_whatever_stands_in_the_brackets() -> None:
    source = "__kernel void k(__global float4* restrict p01_w_ptr, int n) { x = p01_w_ptr[(a[n] + p01_w_ptr_[2])]; }"
    changed = with_images(source, ["p01_w_ptr"])
    assert "void k(__read_only image2d_t p01_w_ptr, int n)" in changed
    assert "x = coexec_pixel(p01_w_ptr, (a[n] + p01_w_ptr_[2]));" in changed
    assert with_images(source, []) == source


def test_a_gpu_that_makes_images_of_buffers_is_offered_both_kinds_of_kernels() -> None:
    size = Extents(rows=49, channels=960, span=160)
    kinds = [one.implementation for one in gpu_products.variants(size, ADRENO)]
    assert {"tiles", "image_tiles"} == set(kinds) and len(kinds) <= 32
    assert kinds[0] == "tiles", "the default is a kernel that needs no images, whatever the bound says of textures"
    assert "image_tiles" not in [
        one.implementation for one in gpu_products.variants(size, replace(ADRENO, image_rows=0))
    ]


def test_weights_that_are_larger_than_an_image_stay_in_a_buffer() -> None:
    assert fits_image(4 * IMAGE_WIDTH * 16384, ADRENO) and not fits_image(4 * IMAGE_WIDTH * 16384 + 1, ADRENO)
    size = Extents(rows=49, channels=1 << 15, span=1 << 12)
    assert not any(one.implementation == "image_tiles" for one in gpu_products.variants(size, ADRENO))


@pytest.mark.parametrize("mechanism", ["svm", "event", "mapped"])
@pytest.mark.parametrize("layer", slow_except(LAYERS, 0), ids=str)
def test_every_split_of_a_module_is_exact(layer: Linear | Conv2d, mechanism: str, device: Device) -> None:
    opened = open_device(device.info.alias, mechanism=mechanism)
    if not opened.info.image_rows:
        pytest.skip("the device makes no images of buffers")
    module = Module(module_of(layer, opened), opened)
    assert any(argument.is_image for step in module.manifest.steps for argument in step.arguments)
    for cpu_units in range(layer.units + 1):
        for seed in (1, 2):  # the second time other weights lie there
            assert module.check_step(0, cpu_units, layer.units - cpu_units, seed=seed) < module.error_bound(0)


def test_a_device_without_such_images_says_so(device: Device) -> None:
    if device.info.image_rows:
        pytest.skip("the device makes images of buffers")
    with pytest.raises(CoexecError, match=r"makes no image of .* bytes of memory .* build the module for this device"):
        Module(module_of(LAYERS[0], device), device)


def test_the_description_of_a_module_says_which_arguments_are_images(device: Device) -> None:
    manifest = module_of(LAYERS[0], device).manifest
    images = [argument.source for step in manifest.steps for argument in step.arguments if argument.is_image]
    assert [source.role for source in images] == ["weights"]
    words = manifest.memory_words()[manifest.memory_of()[images[0]]]
    assert words % (4 * IMAGE_WIDTH) == 0 and words >= np.prod([5, 70, 32])
