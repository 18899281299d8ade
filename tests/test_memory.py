"""Shared memory: what a network asks for at once is zero, aligned, and its blocks do not meet."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_coexec.errors import DeviceError
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.memory import ALIGNMENT, BufferMemory, SvmMemory

COUNTS = {"flag": 1, "row": 1000, "weights": 3 << 20, "more weights": (1 << 20) + 7}


@pytest.mark.parametrize("kind", [SvmMemory, BufferMemory])
def test_blocks_are_zero_aligned_and_apart(device: Device, kind: type[SvmMemory | BufferMemory]) -> None:
    if kind is SvmMemory and device.mechanism != "svm":
        pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
    for _ in range(2):  # the second time some of the memory was used before
        blocks = kind(device).allocate_all(COUNTS)
        assert {name: len(block.array) for name, block in blocks.items()} == COUNTS
        for number, block in enumerate(blocks.values(), 1):
            assert block.array.dtype == np.float32
            assert block.address % ALIGNMENT == 0
            assert not block.array.any()
            block.array[:] = number
        for number, block in enumerate(blocks.values(), 1):
            assert (block.array == number).all()


def test_memory_that_the_device_has_not_is_named(device: Device) -> None:
    if device.mechanism != "svm":
        pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
    with pytest.raises(DeviceError, match=f"gives no {4 << 50} bytes of memory .*; run a smaller network"):
        SvmMemory(device).allocate(1 << 50)
