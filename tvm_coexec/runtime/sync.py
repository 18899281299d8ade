"""The GPU's flag kernels, and the bound on their waits, which is counted since a kernel has no clock."""

from __future__ import annotations

import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_coexec.errors import KernelError

from .memory import Block, SvmMemory
from .program import Command
from .stitch import FLAG_WORDS

if TYPE_CHECKING:
    from .device import Device

LINGER_S = 1e-3
"""For so long the queue stays awake after a run, in case another follows: waking it costs tens of microseconds."""

FLAGS_SOURCE = Path(__file__).with_name("flags.cl")
"""What a kernel needs to await and store flags, in OpenCL C."""

_NEVER = 1 << 30
_CALIBRATION_SPINS = 100_000


@dataclass(frozen=True)
class _Compiled:
    """What every program of a device shares: the flag kernels, and how fast their waits spin."""

    program: Any
    spins_per_s: float
    active: Block
    at_end: weakref.finalize[Any, Device]


_compiled: weakref.WeakKeyDictionary[Device, _Compiled] = weakref.WeakKeyDictionary()


class SyncKernels:
    """Flags in fine-grained SVM, and kernels that store and await them."""

    def __init__(self, device: Device, memory: SvmMemory, timeout_s: float) -> None:
        self.flags = memory.allocate(FLAG_WORDS, "int32", atomics=True)
        if device not in _compiled:
            program = _build(device)
            active = memory.allocate(FLAG_WORDS, "int32", atomics=True)
            at_end = weakref.finalize(device, _end_lingering, device.queue, active)
            _compiled[device] = _Compiled(program, self._calibrate(device, program), active, at_end)
        self._program = _compiled[device].program
        self.active = _compiled[device].active
        self._at_end = _compiled[device].at_end
        self.linger = self._lingering(_compiled[device].spins_per_s)
        # a little more than the CPU's own bound, so that the CPU reports first
        self.limit = max(int(1.5 * timeout_s * _compiled[device].spins_per_s), 1)

    def kernel(self, command: Command) -> Any:
        """A kernel object with its arguments set."""
        import pyopencl as cl

        kernel = cl.Kernel(self._program, f"coexec_{command.kind}")
        step, done, limit = np.int32(command.step), np.int32(command.done), np.uint64(self.limit)
        arguments = {"signal": (done,), "wait": (step, limit), "signal_wait": (done, step, limit)}[command.kind]
        kernel.set_args(self.flags.argument, *arguments)
        return kernel

    def step_arguments(self, awaited: int, done: int) -> tuple[Any, ...]:
        """The last arguments of a layer's kernel that awaits and reports steps itself; 0 stands for none."""
        return self.flags.argument, np.int32(awaited), np.int32(done), np.uint64(self.limit)

    def leave_lingering(self) -> None:
        """After a hang: the process must be able to end, without waiting for the queue."""
        self._at_end.detach()

    def _lingering(self, spins_per_s: float) -> Any:
        import pyopencl as cl

        kernel = cl.Kernel(self._program, "coexec_linger")
        kernel.set_args(self.active.argument, np.uint64(LINGER_S * spins_per_s))
        return kernel

    def _calibrate(self, device: Device, program: Any) -> float:
        """Spins of a wait in a second."""
        import pyopencl as cl

        kernel = cl.Kernel(program, "coexec_wait")
        kernel.set_args(self.flags.argument, np.int32(_NEVER), np.uint64(_CALIBRATION_SPINS))
        elapsed_s = []
        for _ in range(2):
            start = time.perf_counter()
            cl.enqueue_nd_range_kernel(device.queue, kernel, (1,), (1,))
            device.queue.finish()
            elapsed_s.append(time.perf_counter() - start)
            self.flags.array[:] = 0
        return _CALIBRATION_SPINS / min(elapsed_s)


def _end_lingering(queue: Any, active: Block) -> None:
    """Let lingering kernels end before the word that they watch is freed."""
    active.array[0] = 1
    queue.finish()
    time.sleep(2 * LINGER_S)  # for one on the device's other queue


def _build(device: Device) -> Any:
    import pyopencl as cl

    try:
        return build_newest(device, FLAGS_SOURCE.read_text() + Path(__file__).with_name("sync.cl").read_text())
    except cl.Error as error:
        raise KernelError(f"{device.info.name} builds no flag kernel ({error}); use the mechanism 'event'") from None


def build_newest(device: Device, source: str) -> Any:
    """Build for the newest OpenCL C of the device that has C11 atomics, else for OpenCL C 1.2."""
    import pyopencl as cl

    for standard in ("CL3.0", "CL2.0"):
        with suppress(cl.Error):
            return device.build(source, f"-cl-std={standard}")
    return device.build(source, "-cl-std=CL1.2")
