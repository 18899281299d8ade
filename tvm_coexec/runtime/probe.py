"""Tiny kernels that show that a device works, who does its work, and how fast the two sides can talk."""

from __future__ import annotations

import ctypes
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import platformdirs

from tvm_coexec.errors import KernelError, SyncTimeoutError, first_line

_SOURCE = """
__kernel void iota(__global int* out) { out[get_global_id(0)] = get_global_id(0) * 3; }

__kernel void busy(__global float* out, int steps) {
  float value = get_global_id(0);
  for (int i = 0; i < steps; ++i) value = value * 1.0001f + 0.1f;
  out[get_global_id(0)] = value;
}

/* Answers each odd number in words[0] by the same number in words[16], a cache line away. */
__kernel void answer(volatile __global int* words, int rounds, ulong limit) {
  for (int i = 1; i <= rounds; ++i) {
    ulong spins = 0;
    while (atomic_or(words, 0) < i) {
      if (++spins == limit) return;
    }
    atomic_xchg(words + 16, i);
  }
}
"""
_BUSY_STEPS = 40_000
_GROUPS_PER_WORKER = 64
_POLL_S = 0.0002
_SPIN_LIMIT = 200_000_000
_ANSWER_TIMEOUT_S = 5.0


def build(context: Any) -> Any:
    """The probe kernels, compiled.

    Raises
    ------
    KernelError
        The driver compiles none.
    """
    import pyopencl as cl

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cl.CompilerWarning)  # some drivers praise themselves in the build log
            return cl.Program(context, _SOURCE).build(cache_dir=False)
    except cl.Error as error:
        raise KernelError(
            f"the driver of {context.devices[0].name} compiles no kernel ({first_line(error)}); reinstall or update it"
        ) from None


def _probe_kernel(context: Any, name: str) -> Any:
    """One of the probe kernels.

    Raises
    ------
    KernelError
        The driver compiles none, or what its own cache holds of them is damaged.
    """
    import pyopencl as cl

    try:
        return cl.Kernel(build(context), name)
    except cl.Error as error:
        raise KernelError(
            f"the driver of {context.devices[0].name} has lost what it compiled ({first_line(error)}); delete its cache"
            f" of kernels{_pocl_cache(context)}, or reinstall it"
        ) from None


def _pocl_cache(context: Any) -> str:
    """Where PoCL keeps compiled kernels, and trusts them; nothing of another driver."""
    if "Portable Computing Language" not in context.devices[0].platform.name:
        return ""
    return f" in {os.environ.get('POCL_CACHE_DIR') or platformdirs.user_cache_path('pocl')}"


def check_arithmetic(context: Any, queue: Any) -> None:
    """Run a kernel and compare what it wrote.

    Raises
    ------
    KernelError
        The result is wrong, or the driver refuses to run the kernel.
    """
    import pyopencl as cl

    result = np.empty(1000, np.int32)
    try:
        buffer = cl.Buffer(context, cl.mem_flags.WRITE_ONLY, result.nbytes)
        kernel = _probe_kernel(context, "iota")
        kernel.set_args(buffer)
        cl.enqueue_nd_range_kernel(queue, kernel, result.shape, None)
        cl.enqueue_copy(queue, result, buffer)
    except cl.Error as error:
        raise KernelError(f"the driver runs no kernel ({error}); reinstall or update the driver") from None
    if not np.array_equal(result, np.arange(1000) * 3):
        raise KernelError("a tiny kernel computes a wrong result; reinstall or update the OpenCL driver")


def busy_runner(context: Any, queue: Any, worker_count: int) -> Callable[[], None]:
    """A function that gives each worker of the device some milliseconds of work, and sleeps until that is done.

    It asks for the state of the work instead of waiting for it, since a driver may let a waiting thread help.
    """
    import pyopencl as cl

    groups = _GROUPS_PER_WORKER * worker_count
    buffer = cl.Buffer(context, cl.mem_flags.WRITE_ONLY, 4 * groups)
    kernel = _probe_kernel(context, "busy")

    def run() -> None:
        kernel.set_args(buffer, np.int32(_BUSY_STEPS))  # here, since a kernel does not keep its arguments alive
        done = cl.enqueue_nd_range_kernel(queue, kernel, (groups,), (1,))
        queue.flush()
        while done.command_execution_status > cl.command_execution_status.COMPLETE:
            time.sleep(_POLL_S)

    return run


def flag_round_trip_us(context: Any, queue: Any, rounds: int = 2000) -> float:
    """Median time from a word stored by the CPU to the GPU's answer seen by the CPU, in fine-grained SVM.

    Raises
    ------
    SyncTimeoutError
        No answer comes.
    """
    import pyopencl as cl

    flags = cl.svm_mem_flags.READ_WRITE | cl.svm_mem_flags.SVM_FINE_GRAIN_BUFFER | cl.svm_mem_flags.SVM_ATOMICS
    memory = cl.SVMAllocation(context, 128, 128, flags)
    words = (ctypes.c_int32 * 32).from_address(memory.svm_ptr)
    words[0] = words[16] = 0
    kernel = _probe_kernel(context, "answer")
    kernel.set_args(memory, np.int32(rounds), np.uint64(_SPIN_LIMIT))
    cl.enqueue_nd_range_kernel(queue, kernel, (1,), (1,))
    queue.flush()
    try:
        answered_s = [_exchange(words, number) for number in range(1, rounds + 1)]
    finally:
        words[0] = rounds  # a kernel that was too slow runs through, and ends before its words are freed
        queue.finish()
    return float(np.median(np.diff(answered_s))) * 1e6


def _exchange(words: Any, number: int) -> float:
    """Store a number, spin until it is answered, and return the time then."""
    words[0] = number
    deadline = time.perf_counter() + _ANSWER_TIMEOUT_S
    while words[16] != number:
        if time.perf_counter() > deadline:
            raise SyncTimeoutError(
                f"the device did not answer a flag within {_ANSWER_TIMEOUT_S:g} s; use the mechanism 'event' with it"
            )
    return time.perf_counter()
