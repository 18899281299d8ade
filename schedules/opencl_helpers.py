"""What kernels call that OpenCL C as TVM writes it does not have: barriers of their own, and sums over work-groups."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

_BARRIER, _FENCE, _ARRIVE = "COEXEC_LOCAL_BARRIER", "COEXEC_DEVICE_FENCE", "COEXEC_ARRIVE"
_TVM_BARRIER = "barrier(CLK_LOCAL_MEM_FENCE);"

_SOURCE = f"""\
#ifndef {_BARRIER}
#define {_BARRIER}() barrier(CLK_LOCAL_MEM_FENCE)
#if defined(__NV_CL_C_VERSION)
#define {_FENCE}() asm volatile("membar.gl;" ::: "memory")
#elif __OPENCL_C_VERSION__ == 200 || (__OPENCL_C_VERSION__ > 200 && defined(__opencl_c_atomic_scope_device))
#define {_FENCE}() atomic_work_item_fence(CLK_GLOBAL_MEM_FENCE, memory_order_acq_rel, memory_scope_device)
#else
#define {_FENCE}() mem_fence(CLK_GLOBAL_MEM_FENCE)
#endif
static inline int {_ARRIVE}(volatile __global int* counter, int groups) {{
  int before = atomic_inc(counter);
  if (before == groups - 1) *counter = 0;
  return before;
}}
#endif
"""


def local_barrier() -> None:
    """Let a work-group's items wait for each other, and see what the others stored in local memory."""
    _call(_BARRIER)


def arrive(counters: Any, position: Any, is_first_item: Any, groups: int) -> Any:
    """Count a work-group that has stored its part; returns, in every item, whether all the others came before it.

    It then sees what they stored. The last one leaves the counter at zero, as it was at first.
    """
    shared = T.alloc_buffer((1,), "int32", scope="shared")
    before = T.alloc_buffer((1,), "int32", scope="local")
    _call(_FENCE)
    _call(_BARRIER)
    with T.If(is_first_item), T.Then():
        T.buffer_store(shared, T.call_extern("int32", _ARRIVE, T.address_of(counters[position]), T.int32(groups)), [0])
    _call(_BARRIER)
    _call(_FENCE)
    T.buffer_store(before, shared[0], [0])  # TVM wants no local memory in a condition
    return before[0] == groups - 1


def _call(name: str) -> None:
    T.evaluate(T.call_extern("int32", name))


def with_helpers(source: str) -> str:
    """OpenCL C as TVM writes it, with what its kernels call.

    TVM puts barriers wherever local memory is read or written, also between the two halves of a double buffer. Where a
    kernel has its own these are left out. Such a kernel keeps what it has in local memory in one array, since TVM lets
    arrays share memory and trusts in its barriers.
    """
    if _BARRIER not in source:
        return source
    return _SOURCE + source.replace(_TVM_BARRIER, "")
