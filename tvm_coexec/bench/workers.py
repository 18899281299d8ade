"""A CPU device that plays the GPU: which part of it works on so many cores, and which threads do that work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tvm_coexec.errors import DeviceError
from tvm_coexec.machine import cores
from tvm_coexec.opencl.discovery import DeviceInfo
from tvm_coexec.opencl.probe import probe_kernel

_SOURCE = """
__kernel void busy(__global float* out, int steps) {
  float value = get_global_id(0);
  for (int i = 0; i < steps; ++i) value = value * 1.0001f + 0.1f;
  out[get_global_id(0)] = value;
}
"""
_BUSY_STEPS, _GROUPS_PER_WORKER = 40_000, 64
"""Steps of a work-item, and work-groups for each worker, that keep all of them busy for long enough to be seen."""
_POLL_S = 0.0002
"""Between looks at whether the kernel is done: its workers stay busy, and this thread off their cores."""


def pin_workers(info: DeviceInfo, context: Any, queue: Any, count: int, gpu_cores: tuple[int, ...]) -> tuple[int, ...]:
    """Find the threads that work for a CPU device, move them to some cores, and return their kernel ids.

    Raises
    ------
    DeviceError
        Not all of them were seen at work.
    """
    workers = cores.pin(cores.find_workers(busy_runner(context, queue, count), count), gpu_cores)
    if len(workers) < count:
        raise DeviceError(
            f"only {len(workers)} of {count} threads of {info.name} were seen at work, so that they cannot be "
            f"moved to {cores.listed(gpu_cores)}; try again when the machine is less busy"
        )
    return workers


def busy_runner(context: Any, queue: Any, worker_count: int) -> Callable[[], None]:
    """A function that gives each worker of the device some milliseconds of work, and sleeps until that is done.

    It asks for the state of the work instead of waiting for it, since a driver may let a waiting thread help.
    """
    import pyopencl as cl

    groups = _GROUPS_PER_WORKER * worker_count
    buffer = cl.Buffer(context, cl.mem_flags.WRITE_ONLY, 4 * groups)
    kernel = probe_kernel(context, _SOURCE, "busy")

    def run() -> None:
        kernel.set_args(buffer, np.int32(_BUSY_STEPS))  # here, since a kernel does not keep its arguments alive
        done = cl.enqueue_nd_range_kernel(queue, kernel, (groups,), (1,))
        queue.flush()
        while done.command_execution_status > cl.command_execution_status.COMPLETE:
            time.sleep(_POLL_S)

    return run


def part_of(info: DeviceInfo, handle: Any, core_count: int) -> tuple[Any, int]:
    """The part of a CPU device that works with ``core_count`` threads, and how many it really has.

    PoCL's threads take work of every part of its device, so that their number is what counts; it is settled at the
    first query. Intel's runtime keeps to a part, which counts the thread that waits for the work, unless the part has
    one unit only.
    """
    import pyopencl as cl

    available = handle.max_compute_units
    needed = core_count if info.alias == "pocl" or core_count == 1 else core_count + 1
    if available < needed:
        raise DeviceError(
            f"{info.name} works on at most {available if needed == core_count else available - 1} core(s) in this "
            f"process, not on {core_count}; name fewer --gpu-cores, or open it before any other use of OpenCL"
        )
    if info.alias == "pocl":
        return handle, available
    if available == needed:
        return handle, core_count
    partition = cl.device_partition_property
    (part,) = handle.create_sub_devices([partition.BY_COUNTS, needed, partition.BY_COUNTS_LIST_END])
    return part, core_count
