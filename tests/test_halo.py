"""The kernel that clears the halo around an image: all of it, for every split, and nothing else."""

import numpy as np
import pytest
from halves import CpuKernel, OpenCLKernel, aligned
from slow import slow_except

from tvm_coexec.layers import ImageLayout, line_block, tile_count
from tvm_coexec.runtime.device import Device
from tvm_coexec.schedules.halo import Halo
from tvm_coexec.schedules.halo_kernels import clearing

CASES = [
    Halo((1, 5, 7, 70), ImageLayout((1, 1)), 3, "channels"),
    Halo((2, 30, 3, 40), ImageLayout((2, 1)), 2, "channels"),
    Halo((1, 4, 6, 512), ImageLayout((1, 1)), 16, "channels"),
    Halo((1, 4, 6, 33), ImageLayout((0, 2)), 2, "channels"),
    Halo((1, 4, 6, 33), ImageLayout((3, 0)), 2, "channels"),
    Halo((3, 4, 6, 100), ImageLayout((1, 1)), 1, "channels"),
    Halo((1, 4, 6, 160), ImageLayout((1, 1)), 3, "channels"),
    Halo((1, 5, 7, 64), ImageLayout((1, 1), parent_tiles=5, first_tile=2), 2, "channels"),
    Halo((1, 14, 5, 40), ImageLayout((1, 2)), 14, "lines"),
    Halo((1, 29, 5, 40), ImageLayout((2, 1)), 15, "lines"),
    Halo((1, 57, 3, 64), ImageLayout((1, 1)), 15, "lines"),
    Halo((1, 16, 3, 64), ImageLayout((1, 0)), 16, "lines"),
    Halo((1, 16, 3, 64), ImageLayout((0, 3)), 16, "lines"),
    Halo((1, 16, 3, 64), ImageLayout((1, 1), parent_tiles=7, first_tile=3), 16, "lines"),
]


def kernel(halo: Halo, device: Device | None, image: np.ndarray) -> CpuKernel | OpenCLKernel:
    if device is None:
        return CpuKernel(clearing(halo, "cpu"), {"output": image})
    return OpenCLKernel(clearing(halo, "gpu"), {"output": image}, device)


def own_part(halo: Halo, image: np.ndarray, begin: int, end: int) -> np.ndarray:
    """All that lies in the lines and tiles of some units, the halo included: a view."""
    batch, h, w, channels = halo.image
    above, beside = halo.layout.halo
    lines = image.reshape(batch, h + 2 * above, w + 2 * beside, *image.shape[1:])
    first = halo.layout.first_tile
    if halo.axis == "lines":
        block = line_block(h)
        top = above + begin * block if begin else 0
        bottom = above + end * block if end < halo.units else h + 2 * above
        return lines[:, top:bottom, :, first : first + tile_count(channels)]
    unit_tiles = -(-tile_count(channels) // halo.units)
    last = min(end * unit_tiles, tile_count(channels))
    return lines[..., first + begin * unit_tiles : first + last, :]


def check(halo: Halo, device: Device | None) -> None:
    image = aligned(halo.buffer_shape)
    run = kernel(halo, device, image)
    (batch, h, w, _), (above, beside) = halo.image, halo.layout.halo
    for begin, end in {(0, halo.units), (0, 1), (halo.units - 1, halo.units), (halo.units // 2, halo.units)}:
        image[:] = 1
        expected = image.copy()
        own_part(halo, expected, begin, end)[:] = 0
        inside = expected.reshape(batch, h + 2 * above, w + 2 * beside, *image.shape[1:])
        inside[:, above : above + h, beside : beside + w] = 1
        run.run(begin, end - begin)
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("halo", CASES, ids=str)
def test_units_clear_all_that_lies_beside_them_on_the_cpu(halo: Halo) -> None:
    check(halo, None)


@pytest.mark.parametrize("halo", slow_except(CASES, 0, 3, 7, 9, 13), ids=str)
def test_units_clear_all_that_lies_beside_them_with_opencl(halo: Halo, device: Device) -> None:
    check(halo, device)
