"""What an OpenCL device can do at most, measured by two small kernels: multiply-adds, and reads of memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_coexec.runtime.device import Device

_WIDTHS = (1, 4, 8, 16)
"""Floats of a vector: which is fastest depends on how the device's compiler deals with them."""
_CHAINS = 8
"""Multiply-adds of an item that do not wait for each other."""
_STEPS = 256
_GROUP, _GROUPS_A_UNIT = 64, 16
_READ_BYTES = 256 << 20
"""More than caches hold."""
_REPEATS = (5, 50)
_ENOUGH_S = 0.5
"""A kernel is repeated a few times, then until that time has passed or as often as is enough."""

_MULTIPLY_ADDS = """
__kernel void multiply_adds(__global FLOATS* result, float factor) {
  FLOATS sums[CHAINS];
  for (int i = 0; i < CHAINS; ++i) sums[i] = (FLOATS)(get_local_id(0) + i);
  for (int step = 0; step < STEPS; ++step) {
    #pragma unroll
    for (int i = 0; i < CHAINS; ++i) sums[i] = mad(sums[i], (FLOATS)(factor), (FLOATS)(factor));
  }
  for (int i = 1; i < CHAINS; ++i) sums[0] += sums[i];
  result[get_global_id(0)] = sums[0];
}
"""

_READS = """
__kernel void reads(__global FLOATS* result, __global const FLOATS* from, int count, int distance, int step) {
  FLOATS sum = (FLOATS)(0);
  for (int i = 0; i < count; ++i) sum += from[get_global_id(0) * distance + i * step];
  result[get_global_id(0)] = sum;
}
"""


@dataclass(frozen=True)
class Peaks:
    """Most multiply-adds (two operations each) and reads of memory in a second, in 10⁹."""

    gflops: float
    gbytes: float


def measured_peaks(device: Device) -> Peaks:
    """Give the fastest of a few repeats and vector widths."""
    return Peaks(max(map(_gflops(device), _WIDTHS)), max(map(_gbytes(device), _WIDTHS)))


def _gflops(device: Device) -> Callable[[int], float]:
    import pyopencl as cl

    items = _items(device)
    result = cl.Buffer(device.context, cl.mem_flags.WRITE_ONLY, 4 * max(_WIDTHS) * items)

    def measure(width: int) -> float:
        kernel = _kernel(device, _MULTIPLY_ADDS, width)
        kernel.set_args(result, np.float32(0.5))
        return 2.0 * width * _CHAINS * _STEPS * items / _best_ns(device, kernel, items)

    return measure


def _gbytes(device: Device) -> Callable[[int], float]:
    import pyopencl as cl

    (handle,) = device.context.devices
    items = _items(device)
    size = min(_READ_BYTES, handle.max_mem_alloc_size) // (64 * items) * (64 * items)
    memory = cl.Buffer(device.context, cl.mem_flags.READ_ONLY, size)
    cl.enqueue_fill_buffer(device.queue, memory, np.float32(1), 0, size)
    result = cl.Buffer(device.context, cl.mem_flags.WRITE_ONLY, 4 * max(_WIDTHS) * items)

    def measure(width: int) -> float:
        kernel = _kernel(device, _READS, width)
        count = size // (4 * width * items)
        # A GPU's items read what lies side by side; a CPU's, which run one after the other, each read a part by itself.
        distance, step = (count, 1) if device.is_bench else (1, items)
        kernel.set_args(result, memory, *map(np.int32, (count, distance, step)))
        return size / _best_ns(device, kernel, items)

    return measure


def _items(device: Device) -> int:
    return _GROUP * _GROUPS_A_UNIT * device.info.compute_units


def _kernel(device: Device, source: str, width: int) -> Any:
    import pyopencl as cl

    floats = f"float{width}" if width > 1 else "float"
    options = [f"-DFLOATS={floats}", f"-DWIDTH={width}", f"-DCHAINS={_CHAINS}", f"-DSTEPS={_STEPS}"]
    (kernel,) = cl.Program(device.context, source).build(options).all_kernels()
    return kernel


def _best_ns(device: Device, kernel: Any, items: int) -> float:
    """Measure the shortest time of a kernel by the device's own clock."""
    import pyopencl as cl

    queue = cl.CommandQueue(device.context, properties=cl.command_queue_properties.PROFILING_ENABLE)
    times: list[int] = []
    begin = time.perf_counter()
    while len(times) < _REPEATS[0] or (len(times) < _REPEATS[1] and time.perf_counter() - begin < _ENOUGH_S):
        event = cl.enqueue_nd_range_kernel(queue, kernel, (items,), (_GROUP,))
        event.wait()
        times.append(event.profile.end - event.profile.start)
    return float(min(times))
