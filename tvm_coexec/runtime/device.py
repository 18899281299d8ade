"""Opens a device: an OpenCL context and queues for the GPU's side, and the cores of both sides."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import threading
import warnings
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

from tvm_coexec.bench import workers
from tvm_coexec.errors import DeviceError, SyncTimeoutError, first_line
from tvm_coexec.machine import cores
from tvm_coexec.opencl.caches import program_cache
from tvm_coexec.opencl.choice import DeviceChoice, facts_of
from tvm_coexec.opencl.discovery import DeviceInfo
from tvm_coexec.opencl.loader import opencl_loader

from . import library
from .handle import Handle

_confined: weakref.WeakSet[Device] = weakref.WeakSet()
"""Open CPU devices: the threads of one driver cannot serve two of them on different cores."""


class Device:
    """A CPU and an OpenCL device that work side by side; made by :func:`open_device`.

    Attributes
    ----------
    info
        What the OpenCL device can do.
    context, queue
        Its pyopencl context, and an in-order queue.
    cpu_cores
        Cores for the CPU's side, its first thread on the first one.
    gpu_cores
        Cores on which an OpenCL CPU device works; empty for a real GPU.
    workers
        Kernel ids of the threads that work for an OpenCL CPU device; empty for a real GPU.
    mechanism
        How the sides synchronise: ``svm``, ``event`` or ``mapped``.
    notes
        What a reader of measurements has to know.
    hang
        Set once a kernel did not end, and says so: nothing that is enqueued may be waited for any more.
    """

    def __init__(
        self,
        info: DeviceInfo,
        context: Any,
        cpu_cores: tuple[int, ...],
        gpu_cores: tuple[int, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        import pyopencl as cl

        self.info = info
        self.context = context
        self.queue = cl.CommandQueue(context)
        self.cpu_cores = cpu_cores
        self.gpu_cores = gpu_cores
        self.notes = notes
        self.workers: tuple[int, ...] = ()
        self.hang: str | None = None
        self._turn = threading.RLock()
        self._process = os.getpid()

    @property
    def mechanism(self) -> str:
        return self.info.mechanism

    @property
    def is_bench(self) -> bool:
        """Whether a CPU device plays the GPU."""
        return self.info.device_type == "cpu"

    @property
    def label(self) -> str:
        """The device's name for reports; says so where a CPU device plays the GPU."""
        if not self.is_bench:
            return self.info.name
        where = cores.listed(self.gpu_cores)
        return f"{self.info.name} (bench device: a CPU OpenCL device on {where} plays the GPU)"

    @cached_property
    def handle(self) -> Handle:
        """The device as the C library has opened it, with its context and its queue."""
        (handle,) = self.context.devices
        cores = (ctypes.c_int32 * len(self.cpu_cores))(*self.cpu_cores)
        options = library.DeviceOptions(
            opencl_library=os.fsencode(opencl_loader()),
            context=self.context.int_ptr,
            device=handle.int_ptr,
            queue=self.queue.int_ptr,
            mechanism=library.MECHANISMS[self.mechanism],
            cores=cores,
            core_count=len(cores),
            cache_folder=os.fsencode(program_cache()),
            separate_memory=not self.info.unified_memory,
        )
        pointer = ctypes.c_void_p()
        status = library.library().coexec_device_open(options, pointer)
        if status != library.OK:
            raise library.error_of(status)
        return Handle("device", pointer)

    def threads_ran_on(self) -> tuple[int | None, ...]:
        """The core of each of the CPU's threads in the last run, that of the first first; None for one without work.

        They are to run on :attr:`cpu_cores`, in this order; a system may let them run elsewhere.
        """
        found = (ctypes.c_int32 * len(self.cpu_cores))()
        library.library().coexec_threads_ran_on(self.handle.pointer, found, len(found))
        return tuple(core if core >= 0 else None for core in found)

    def facts(self) -> dict[str, Any]:
        """Everything that a measurement on this device depends on, as JSON values."""
        known = facts_of(self.info, self.cpu_cores, self.gpu_cores)
        return {**known, "label": self.label, "is_bench": self.is_bench, "notes": list(self.notes)}

    @property
    def shares_core(self) -> bool:
        """Whether both sides have but one core, on which they cannot run at once."""
        return not set(self.cpu_cores).isdisjoint(self.gpu_cores)

    def in_turn(self) -> AbstractContextManager[Any]:
        """Let one thread at a time use the device: runs wait for each other in its queue anyway.

        Raises
        ------
        DeviceError
            This process is a fork of the one that opened the device.
        """
        if os.getpid() != self._process:
            raise DeviceError(
                "the device was opened before this process was forked, and no driver survives that; start processes "
                "with multiprocessing's method 'spawn', or open devices and load modules in the forked process alone"
            )
        return self._turn

    def check_usable(self) -> None:
        """Raise the error of a kernel that hangs, if one does."""
        if self.hang is not None:
            raise SyncTimeoutError(self.hang)

    def close(self) -> None:
        """Finish what is enqueued; another device may then use the same driver's threads on other cores."""
        if self.hang is None:
            self.queue.finish()
        self.__dict__.pop("handle", None)
        _confined.discard(self)

    def __repr__(self) -> str:
        return f"<Device {self.label}, mechanism {self.mechanism}>"


def open_device(
    name: str | None = None,
    *,
    cpu_cores: Iterable[int] | None = None,
    gpu_cores: Iterable[int] | None = None,
    mechanism: str | None = None,
) -> Device:
    """Open an OpenCL device, and choose the cores that work alongside it.

    Parameters
    ----------
    name
        Any unambiguous part of a device's name, platform or alias; by default a GPU if there is one, then PoCL, then
        Intel's CPU runtime.
    cpu_cores
        Cores of the CPU's side. By default every core with a GPU; with an OpenCL CPU device those that it leaves.
    gpu_cores
        Cores of an OpenCL CPU device, whose threads are moved there; by default half of the machine's. The number of
        PoCL's threads is settled by the first OpenCL query of the process.
    mechanism
        ``svm`` or ``event``; by default the best of them that the device has, but ``event`` where both sides share one
        core. ``mapped``: flags in buffers that stay mapped, of which OpenCL does not promise that they work. A probe of
        100,000 hand-overs of data and flag in both directions looks whether any is lost, in every process that opens
        the device so.

    Raises
    ------
    DeviceError
        The device is missing or ambiguous, or lacks what is asked of it; or the probe has found a loss.
    """
    cpu_asked, gpu_asked = (None if asked is None else tuple(asked) for asked in (cpu_cores, gpu_cores))
    return open_chosen(DeviceChoice(name, cpu_asked, gpu_asked, mechanism))


def open_chosen(choice: DeviceChoice) -> Device:
    """Open a device as :func:`open_device` does."""
    info, handle, cpu_chosen, gpu_chosen = choice.find()
    if info.device_type == "cpu":
        device = _open_bench(info, handle, cpu_chosen, gpu_chosen)
    else:
        device = _make(info, handle, cpu_chosen)
    if choice.mechanism == "mapped":
        _ = device.handle  # the library probes the device when it opens it
    return device


def warn_of_one_core(device: Device) -> None:
    """Say that layers are not divided, where the sides would wait for each other's turn on one core."""
    warnings.warn(
        f"this process may use {cores.listed(device.cpu_cores)} alone, on which both sides cannot run at once: layers "
        "run whole, on the CPU where it has kernels for them; let the process use a second core",
        stacklevel=3,
    )


def _make(
    info: DeviceInfo,
    handle: Any,
    cpu_cores: tuple[int, ...],
    gpu_cores: tuple[int, ...] = (),
    notes: Iterable[str] = (),
) -> Device:
    """Make the device with a context of its own."""
    import pyopencl as cl

    try:
        return Device(info, cl.Context([handle]), cpu_cores, gpu_cores, tuple(notes))
    except cl.Error as error:
        raise DeviceError(
            f"{info.name} cannot be opened ({first_line(error)}); end other programs that use it, or reinstall its "
            "driver"
        ) from None


def _open_bench(info: DeviceInfo, handle: Any, cpu_cores: tuple[int, ...], gpu_cores: tuple[int, ...]) -> Device:
    """Open a CPU device whose threads run on ``gpu_cores`` alone."""
    for other in _confined:
        if other.info.alias == info.alias and other.gpu_cores != gpu_cores:
            raise DeviceError(
                f"{info.name} is open on {cores.listed(other.gpu_cores)} in this process, and its threads cannot serve "
                f"{cores.listed(gpu_cores)} too; close() that device first"
            )
    notes = []
    if set(cpu_cores) & set(gpu_cores):
        notes.append("this process may use one core only: the CPU's side and the OpenCL device share it")
    part, count = workers.part_of(info, handle, len(gpu_cores))
    if count > len(gpu_cores):
        notes.append(f"the driver had been started with {count} threads, which share {len(gpu_cores)} core(s)")
    info = dataclasses.replace(info, compute_units=len(gpu_cores))
    device = _make(info, part, cpu_cores, gpu_cores, notes)
    device.workers = workers.pin_workers(info, device.context, device.queue, count, gpu_cores)
    _confined.add(device)
    return device
