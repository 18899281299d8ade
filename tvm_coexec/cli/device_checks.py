"""Tiny kernels by which the doctor sees that a device works, and how fast its two sides can talk."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np

from tvm_coexec.errors import KernelError, SyncTimeoutError
from tvm_coexec.opencl.probe import probe_kernel

_SOURCE = """
__kernel void iota(__global int* out) { out[get_global_id(0)] = get_global_id(0) * 3; }

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
_SPIN_LIMIT = 200_000_000
_ANSWER_TIMEOUT_S = 5.0
"""Looks of the kernel at a word that never comes before it gives up, and what the host waits for an answer that takes
microseconds where there is one.
"""


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
        kernel = probe_kernel(context, _SOURCE, "iota")
        kernel.set_args(buffer)
        cl.enqueue_nd_range_kernel(queue, kernel, result.shape, None)
        cl.enqueue_copy(queue, result, buffer)
    except cl.Error as error:
        raise KernelError(f"the driver runs no kernel ({error}); reinstall or update the driver") from None
    if not np.array_equal(result, np.arange(1000) * 3):
        raise KernelError("a tiny kernel computes a wrong result; reinstall or update the OpenCL driver")


def flag_round_trip_us(context: Any, queue: Any, rounds: int = 2000) -> float:
    """Measure the median time from a word that the CPU stores to its sight of the GPU's answer, in fine-grained SVM.

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
    kernel = probe_kernel(context, _SOURCE, "answer")
    kernel.set_args(memory, np.int32(rounds), np.uint64(_SPIN_LIMIT))
    cl.enqueue_nd_range_kernel(queue, kernel, (1,), (1,))
    queue.flush()
    try:
        answered_s = [_answered_s(words, number) for number in range(1, rounds + 1)]
    finally:
        words[0] = rounds  # a kernel that was too slow runs through, and ends before its words are freed
        queue.finish()
    return float(np.median(np.diff(answered_s))) * 1e6


def _answered_s(words: Any, number: int) -> float:
    """Store a number, spin until it is answered, and return the time then."""
    words[0] = number
    deadline = time.perf_counter() + _ANSWER_TIMEOUT_S
    while words[16] != number:
        if time.perf_counter() > deadline:
            raise SyncTimeoutError(
                f"the device did not answer a flag within {_ANSWER_TIMEOUT_S:g} s; use the mechanism 'event' with it"
            )
    return time.perf_counter()
