"""Rivals of our kernels for a GPU's layers are cuBLAS and cuDNN through torch, CLBlast, and TVM's dlight.

All compute the layer without bias or activation. What OpenCL runs is measured in calls that follow each other in one
queue, and compared with numpy's result once.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import time
from collections.abc import Callable
from functools import cache, partial

import numpy as np

from tvm_coexec.layers import AnyLayer, Conv2d, Linear
from tvm_coexec.runtime.device import Device

CALLS = 20
"""Calls that are measured together."""
_LEAST_S = 0.02
_TOLERANCE = 1e-4
_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112
"""How CLBlast calls the order of a matrix's elements, and what is done with it."""

RIVALS = ("cuBLAS or cuDNN", "CLBlast", "dlight")

Rival = Callable[[], float]
"""Measures a rival's kernels for a layer, in microseconds a call."""


def rivals_of(layer: AnyLayer, device: Device) -> dict[str, Rival]:
    """Those that there are here for a layer, by name."""
    found = zip(RIVALS, (_vendor(layer), _clblast(layer, device), _dlight(layer, device)), strict=True)
    return {name: rival for name, rival in found if rival is not None}


def _product(layer: AnyLayer) -> tuple[int, int, int] | None:
    """Rows, reduction and columns of a layer that is one product of matrices as its operands lie in memory."""
    if isinstance(layer, Linear):
        return layer.m, layer.k, layer.n
    if not isinstance(layer, Conv2d) or (layer.kernel, layer.stride, layer.groups) != ((1, 1), (1, 1), 1):
        return None
    return None if any(layer.padding) else (layer.batch * layer.h * layer.w, layer.in_channels, layer.out_channels)


def _vendor(layer: AnyLayer) -> Rival | None:
    """What measures cuBLAS or cuDNN in a CUDA graph and without TF32; None where torch has no CUDA device."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    if isinstance(layer, Linear):
        x, weights = torch.randn(layer.m, layer.k, device="cuda"), torch.randn(layer.n, layer.k, device="cuda")
        call = partial(torch.nn.functional.linear, x, weights)
    else:
        top, left, bottom, right = layer.padding
        shape = (layer.batch, layer.in_channels, layer.h + top + bottom, layer.w + left + right)
        kernel = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel)
        x, weights = (
            torch.randn(size, device="cuda").to(memory_format=torch.channels_last) for size in (shape, kernel)
        )
        options = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
        call = partial(torch.nn.functional.conv2d, x, weights, **options)
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()

    def measure() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) * 1e3 / CALLS

    return measure


class _Matrices:
    """Random operands of a product on the device, and the result that they have."""

    def __init__(self, device: Device, rows: int, reduction: int, columns: int) -> None:
        import pyopencl as cl

        rng = np.random.default_rng(3)
        x = rng.standard_normal((rows, reduction), dtype=np.float32)
        weights = rng.standard_normal((columns, reduction), dtype=np.float32)
        flags = cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR
        self.device, self.expected = device, x @ weights.T
        self.x, self.weights = (cl.Buffer(device.context, flags, hostbuf=one) for one in (x, weights))
        self.result = cl.Buffer(device.context, cl.mem_flags.READ_WRITE, 4 * rows * columns)

    def rival(self, call: Callable[[], None]) -> Rival | None:
        """What measures a call that enqueues the product; None where its result is wrong."""
        import pyopencl as cl

        queue, found = self.device.queue, np.full_like(self.expected, np.nan)
        cl.enqueue_copy(queue, self.result, found)
        call()
        cl.enqueue_copy(queue, found, self.result)
        if not np.abs(found - self.expected).max() <= _TOLERANCE * np.abs(self.expected).max():
            return None

        def measure() -> float:
            queue.finish()
            begin, calls = time.perf_counter(), 0
            while calls < CALLS and (calls == 0 or time.perf_counter() - begin < _LEAST_S):
                call()
                calls += 1
                if self.device.is_bench:  # a CPU device's queue grows without bound before it works
                    queue.finish()
            queue.finish()
            return (time.perf_counter() - begin) * 1e6 / calls

        return measure


@cache
def _clblast_library() -> ctypes.CDLL | None:
    name = ctypes.util.find_library("clblast")
    return None if name is None else ctypes.CDLL(name)


def _clblast(layer: AnyLayer, device: Device) -> Rival | None:
    """CLBlast's product of matrices; None where it is not installed, or the layer is no such product."""
    library, product = _clblast_library(), _product(layer)
    if library is None or product is None:
        return None
    rows, reduction, columns = product
    matrices = _Matrices(device, *product)
    size, handle = ctypes.c_size_t, ctypes.c_void_p
    x, weights, result = (handle(one.int_ptr) for one in (matrices.x, matrices.weights, matrices.result))
    queue = handle(device.queue.int_ptr)

    def call() -> None:
        library.CLBlastSgemm(
            *(_ROW_MAJOR, _PLAIN, _TRANSPOSED),
            *(size(rows), size(columns), size(reduction), ctypes.c_float(1)),
            *(x, size(0), size(reduction), weights, size(0), size(reduction), ctypes.c_float(0)),
            *(result, size(0), size(columns), ctypes.byref(queue), None),
        )

    return matrices.rival(call)


def _dlight(layer: AnyLayer, device: Device) -> Rival | None:
    """The product as TVM's dlight schedules it for OpenCL; None where the layer is none, or no rule of it applies."""
    product = _product(layer)
    if product is None:
        return None
    import pyopencl as cl

    try:
        source, grid, group = _dlight_kernel(product, device.facts()["max_group_size"])
        (kernel,) = cl.Program(device.context, source).build().all_kernels()
    except (RuntimeError, ValueError, cl.Error):
        return None
    matrices = _Matrices(device, *product)
    kernel.set_args(matrices.x, matrices.weights, matrices.result)
    sizes = tuple(groups * items for groups, items in zip(grid, group, strict=True))
    return matrices.rival(lambda: cl.enqueue_nd_range_kernel(device.queue, kernel, sizes, group) and None)


def _dlight_kernel(product: tuple[int, int, int], most_items: int) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Give the OpenCL C, work-groups and their size of ``x [rows, reduction] · weights [columns, reduction]ᵀ``."""
    import tvm
    from tvm import s_tir, te
    from tvm.s_tir import dlight

    rows, reduction, columns = product
    # TVM sorts a kernel's arguments by their names.
    x, weights = te.placeholder((rows, reduction), name="a_x"), te.placeholder((columns, reduction), name="b_weights")
    k = te.reduce_axis((0, reduction), name="k")
    result = te.compute((rows, columns), lambda i, j: te.sum(x[i, k] * weights[j, k], axis=k), name="c_result")
    module = tvm.IRModule({"main": te.create_prim_func([x, weights, result])})
    target = tvm.target.Target({"kind": "opencl", "max_num_threads": most_items}, host="c")
    rules = (dlight.gpu.Matmul(), dlight.gpu.GEMV(), dlight.gpu.Reduction(), dlight.gpu.Fallback())
    with target:
        module = dlight.ApplyDefaultSchedule(*rules)(module)
    extents = {f"{kind}.{axis}": 1 for kind in ("blockIdx", "threadIdx") for axis in "xyz"}
    schedule = s_tir.Schedule(module)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        for loop in map(schedule.get, schedule.get_loops(block)):
            if loop.thread_binding is not None:
                extents[loop.thread_binding.thread_tag] = int(loop.extent)
    compiled = tvm.compile(module, target=target)
    source = next(part for part in compiled.mod.imports if part.kind == "opencl").inspect_source()
    grid, group = (tuple(extents[f"{kind}.{axis}"] for axis in "xyz") for kind in ("blockIdx", "threadIdx"))
    return source, grid, group
