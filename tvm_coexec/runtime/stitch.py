"""The stitch's structures (stitch.h) for Python, and the library that holds it and a module's CPU kernels."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tvm_coexec.errors import DeviceError, FileFormatError

from .loader import import_opencl

SOURCES = tuple(Path(__file__).with_name(name) for name in ("stitch.c", "pool.c"))
FLAG_WORDS = 160
OPERATION_KINDS = ("enqueue", "call", "signal", "wait", "exchange", "finish")
STATUS_OK, STATUS_CPU_WAITED, STATUS_GPU_WAITED, STATUS_KERNEL_FAILED, STATUS_OPENCL_FAILED, STATUS_GPU_HANGS = range(6)

_INTEGER, _TENSOR = 1, 7  # kTVMFFIInt, kTVMFFIDLTensorPtr
_CPU = 1  # kDLCPU
_TYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # kDLInt, kDLUInt, kDLFloat, kDLBool, by numpy's kinds


class Tensor(ctypes.Structure):
    """DLPack's tensor (dlpack.h)."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype_code", ctypes.c_uint8),
        ("dtype_bits", ctypes.c_uint8),
        ("dtype_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )

    @classmethod
    def of(cls, address: int, shape: Sequence[int], dtype: str = "float32") -> Tensor:
        """A compact tensor at an address."""
        kind = np.dtype(dtype)
        extents = (ctypes.c_int64 * len(shape))(*shape)
        return cls(address, _CPU, 0, len(shape), _TYPE_CODES[kind.kind], 8 * kind.itemsize, 1, extents, None, 0)


class Argument(ctypes.Structure):
    _fields_ = (("type_index", ctypes.c_int32), ("padding", ctypes.c_uint32), ("value", ctypes.c_int64))


class Operation(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int32) for name in ("kind", "step", "first", "last"))


class Call(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(Argument)),
        *((name, ctypes.c_int32) for name in ("argument_count", "begin", "count", "padding")),
    )

    @classmethod
    def of(cls, kernel: int, tensors: Sequence[Tensor], begin: int, count: int) -> Call:
        """A call of ``kernel(*tensors, begin, count)``; the caller keeps the tensors alive."""
        arguments = (Argument * (len(tensors) + 2))()
        for argument, tensor in zip(arguments, tensors, strict=False):
            argument.type_index, argument.value = _TENSOR, ctypes.addressof(tensor)
        for argument, value in zip(arguments[-2:], (begin, count), strict=True):
            argument.type_index, argument.value = _INTEGER, value
        return cls(kernel, arguments, len(arguments), begin, count)


class Command(ctypes.Structure):
    _fields_ = (("kernel", ctypes.c_void_p), ("global_size", ctypes.c_size_t * 2), ("local_size", ctypes.c_size_t * 2))


class Exchange(ctypes.Structure):
    _fields_ = (
        ("buffer", ctypes.c_void_p),
        ("host", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("unified", ctypes.c_int32),
        ("padding", ctypes.c_int32),
        ("row_bytes", ctypes.c_size_t),
        *((name, ctypes.c_size_t * 3) for name in ("gpu_origin", "gpu_region", "cpu_origin", "cpu_region")),
    )


class Program(ctypes.Structure):
    _fields_ = (
        ("operations", ctypes.POINTER(Operation)),
        ("commands", ctypes.POINTER(Command)),
        ("calls", ctypes.POINTER(Call)),
        ("exchanges", ctypes.POINTER(Exchange)),
        *((f"{name}_count", ctypes.c_int32) for name in ("operation", "command")),
        ("queue", ctypes.c_void_p),
        ("flags", ctypes.c_void_p),
        ("active", ctypes.c_void_p),
        ("linger", ctypes.c_void_p),
        ("timeout_ns", ctypes.c_int64),
        ("cores", ctypes.POINTER(ctypes.c_int32)),
        ("core_count", ctypes.c_int32),
        ("yields", ctypes.c_int32),
        ("operation_ns", ctypes.POINTER(ctypes.c_int64)),
        ("events", ctypes.POINTER(ctypes.c_void_p)),
        *((name, ctypes.c_int64) for name in ("start_ns", "end_ns")),
        *((name, ctypes.c_uint64) for name in ("start_ticks", "end_ticks")),
        *((name, ctypes.c_int32) for name in ("status", "status_step", "opencl_error", "padding")),
        ("text", ctypes.c_char * 256),
        *((name, ctypes.c_void_p) for name in ("pool", "workspaces")),
    )


class Library:
    """A shared library of compiled CPU kernels with the stitch linked in."""

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            if os.statvfs(path).f_flag & os.ST_NOEXEC:
                raise DeviceError(
                    f"no code may be run in {path.parent.parent}, where the module's is put while it is used; "
                    "let TMPDIR name another folder"
                ) from None
            raise FileFormatError(
                f"the module's CPU code cannot be loaded ({error}); build the module for this machine"
            ) from None
        names = ("start", "run", "stop", "held_bytes")
        self.start, self.run, self.stop, self.held_bytes = (getattr(self._library, f"coexec_{name}") for name in names)
        for function in (self.start, self.run, self.stop, self.held_bytes):
            function.argtypes = [ctypes.POINTER(Program)]
        self.held_bytes.restype = ctypes.c_size_t
        self._library.coexec_open_opencl.argtypes = [ctypes.c_char_p]
        loader = opencl_loader()
        if self._library.coexec_open_opencl(str(loader).encode()):
            raise DeviceError(f"the OpenCL library {loader} cannot be loaded; run `tvm-coexec doctor`")

    def kernel(self, symbol: str) -> int:
        """Address of a kernel in TVM's calling convention."""
        try:
            function = getattr(self._library, f"__tvm_ffi_{symbol}")
        except AttributeError:
            raise FileFormatError(f"the module's CPU code has no kernel {symbol!r}; build the module again") from None
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address is not None
        return address


def opencl_loader() -> Path:
    """Path of the OpenCL loader that pyopencl has brought into this process."""
    import_opencl()
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            path = line.rstrip().partition("/")
            if "libOpenCL" in path[2]:
                return Path("/" + path[2])
    raise DeviceError("no OpenCL loader (libOpenCL) is loaded; run `tvm-coexec doctor`")


def numbers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * len(values))(*values)


def nanoseconds(count: int) -> np.ndarray:
    """Room for the start and the end of ``count`` operations."""
    return np.zeros((count, 2), np.int64)
