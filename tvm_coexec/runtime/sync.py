"""The GPU's flag kernels, and the bound on their waits, which is counted since a kernel has no clock."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_coexec.errors import KernelError

from .memory import SvmMemory
from .program import Command
from .stitch import FLAG_WORDS

if TYPE_CHECKING:
    from .device import Device

_NEVER = 1 << 30
_CALIBRATION_SPINS = 100_000


class SyncKernels:
    """Flags in fine-grained SVM, and kernels that store and await them."""

    def __init__(self, device: Device, memory: SvmMemory, timeout_s: float) -> None:
        self.flags = memory.allocate(FLAG_WORDS, "int32", atomics=True)
        self._program = _build(device)
        self._limit = 0
        self._limit = self._calibrate(device, timeout_s)

    def kernel(self, command: Command) -> Any:
        """A kernel object with its arguments set."""
        import pyopencl as cl

        kernel = cl.Kernel(self._program, f"coexec_{command.kind}")
        step, done, limit = np.int32(command.step), np.int32(command.done), np.uint64(self._limit)
        arguments = {"signal": (done,), "wait": (step, limit), "signal_wait": (done, step, limit)}[command.kind]
        kernel.set_args(self.flags.argument, *arguments)
        return kernel

    def _calibrate(self, device: Device, timeout_s: float) -> int:
        """How many spins last a little longer than the CPU's own bound, so that the CPU reports first."""
        import pyopencl as cl

        self._limit = _CALIBRATION_SPINS
        kernel = self.kernel(Command("wait", _NEVER))
        elapsed_s = []
        for _ in range(2):
            start = time.perf_counter()
            cl.enqueue_nd_range_kernel(device.queue, kernel, (1,), (1,))
            device.queue.finish()
            elapsed_s.append(time.perf_counter() - start)
            self.flags.array[:] = 0
        return max(int(_CALIBRATION_SPINS * 1.5 * timeout_s / min(elapsed_s)), 1)


def _build(device: Device) -> Any:
    """Build for the newest OpenCL C of the device that has C11 atomics, else for OpenCL C 1.2."""
    import pyopencl as cl

    source = Path(__file__).with_name("sync.cl").read_text()
    last: Exception | None = None
    for standard in ("CL3.0", "CL2.0", "CL1.2"):
        try:
            return cl.Program(device.context, source).build([f"-cl-std={standard}"], cache_dir=False)
        except cl.Error as error:
            last = error
    raise KernelError(f"{device.info.name} builds no flag kernel ({last}); use the mechanism 'event'")
