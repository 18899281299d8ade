"""Memory that the CPU and the OpenCL device share: fine-grained SVM, or buffers for devices without it."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_coexec.errors import DeviceError, first_line
from tvm_coexec.module.manifest import Memory

from .stitch import opencl_loader

if TYPE_CHECKING:
    from .device import Device

ALIGNMENT = 128
_EXEC_INFO_SVM_PTRS = 0x11B6


@dataclass
class Block:
    """A piece of memory: float32, int32 for flags, or uint64 for a table of steps.

    ``array`` is the CPU's flat view; ``argument`` is what a kernel's ``set_arg`` takes; ``buffer`` is the ``cl_mem``
    where there is one, and ``owner`` keeps the memory alive.
    """

    array: np.ndarray
    argument: Any
    owner: Any
    buffer: Any = None

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)

    def publish(self, queue: Any) -> None:
        """Let the device see what the CPU has written while no program ran."""
        if self.buffer is not None:
            import pyopencl as cl

            cl.enqueue_copy(queue, self.buffer, self.array.copy(), is_blocking=True)


class SvmMemory:
    """Fine-grained SVM: one address for both processors, nothing to publish."""

    def __init__(self, device: Device) -> None:
        self._context = device.context

    def allocate(self, count: int, dtype: str = "float32", *, atomics: bool = False) -> Block:
        """Zeroed memory for ``count`` elements."""
        block = self._reserve(count, dtype, atomics=atomics)
        block.array[:] = 0
        return block

    def allocate_all(self, counts: Mapping[Memory, int]) -> dict[Memory, Block]:
        """Zeroed memory for so many numbers under each key, in huge pages where the system has some.

        None is touched before all is there: a huge page may then reach from one block into its neighbour.
        """
        blocks = {memory: self._reserve(count, "float32", atomics=False) for memory, count in counts.items()}
        for block in blocks.values():
            _prefer_huge_pages(block.array)
        for block in blocks.values():
            block.array[:] = 0
        return blocks

    def _reserve(self, count: int, dtype: str, *, atomics: bool) -> Block:
        import pyopencl as cl

        flags = cl.svm_mem_flags.READ_WRITE | cl.svm_mem_flags.SVM_FINE_GRAIN_BUFFER
        if atomics:
            flags |= cl.svm_mem_flags.SVM_ATOMICS
        nbytes = max(count, 1) * np.dtype(dtype).itemsize
        with _naming_the_cause(nbytes):
            allocation = cl.SVMAllocation(self._context, nbytes, ALIGNMENT, flags)
        raw = _kept_bytes(nbytes).from_address(allocation.svm_ptr)
        raw.owner = allocation  # views may outlive the block, and keep these bytes
        return Block(np.frombuffer(memoryview(raw), dtype), allocation, allocation)


@cache
def _kept_bytes(count: int) -> Any:
    """The type of so many bytes, which can keep what they lie in."""
    return type("KeptBytes", (ctypes.c_char * count,), {})


@contextmanager
def _naming_the_cause(nbytes: int) -> Iterator[None]:
    """Around an allocation, which a driver refuses in its own words."""
    import pyopencl as cl

    try:
        yield
    except cl.Error as error:
        raise DeviceError(
            f"the OpenCL device gives no {nbytes} bytes of memory ({first_line(error)}); run a smaller network, or end "
            "other programs that use the device"
        ) from None


def _prefer_huge_pages(array: np.ndarray) -> None:
    """Ask for huge pages where ``array`` lies; without them, finding a weight's page takes longer than reading it.

    A system that has none, or memory that belongs to a driver, refuses, and nothing is lost.
    """
    advice, page = getattr(mmap, "MADV_HUGEPAGE", None), mmap.PAGESIZE
    if advice is not None and array.nbytes >= page:
        start = array.ctypes.data // page * page
        length = array.ctypes.data + array.nbytes - start
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)


def reach(kernel: Any, blocks: Iterable[Block]) -> None:
    """Tell the driver which SVM a kernel reaches by addresses that are no arguments of its own."""
    addresses = sorted({block.address for block in blocks})
    pointers = (ctypes.c_void_p * len(addresses))(*addresses)
    size = ctypes.c_size_t(ctypes.sizeof(pointers))
    error = _loader().clSetKernelExecInfo(ctypes.c_void_p(kernel.int_ptr), _EXEC_INFO_SVM_PTRS, size, pointers)
    if error:
        raise DeviceError(
            f"the OpenCL driver does not take addresses in shared memory (clSetKernelExecInfo failed with {error}); "
            "update the driver, or use the mechanism 'event'"
        )


@cache
def _loader() -> ctypes.CDLL:
    return ctypes.CDLL(str(opencl_loader()))


class BufferMemory:
    """OpenCL buffers with a host copy; on devices that share the host's memory the copy *is* the buffer."""

    def __init__(self, device: Device) -> None:
        self._context = device.context
        self._unified = device.info.unified_memory

    def allocate(self, count: int, dtype: str = "float32", *, atomics: bool = False) -> Block:
        """Zeroed memory for ``count`` elements."""
        import pyopencl as cl

        if atomics:
            raise ValueError("buffers hold no flags: atomics need fine-grained SVM")
        array = _aligned_zeros(max(count, 1), dtype)
        flags = cl.mem_flags.READ_WRITE
        flags |= cl.mem_flags.USE_HOST_PTR if self._unified else cl.mem_flags.COPY_HOST_PTR
        with _naming_the_cause(array.nbytes):
            buffer = cl.Buffer(self._context, flags, hostbuf=array)
        return Block(array, buffer, array, buffer)

    def allocate_all(self, counts: Mapping[Memory, int]) -> dict[Memory, Block]:
        """Zeroed memory for so many numbers under each key; numpy sees to huge pages."""
        return {memory: self.allocate(count) for memory, count in counts.items()}


def _aligned_zeros(count: int, dtype: str) -> np.ndarray:
    """Page-aligned, as zero-copy buffers want it."""
    page = 4096
    raw = np.zeros(count * np.dtype(dtype).itemsize + page, np.uint8)
    start = -raw.ctypes.data % page
    return raw[start : start + count * np.dtype(dtype).itemsize].view(dtype)


def memory_for(device: Device) -> SvmMemory | BufferMemory:
    """The memory that the device's synchronisation mechanism works on."""
    return SvmMemory(device) if device.mechanism == "svm" else BufferMemory(device)
