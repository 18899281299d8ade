"""Python calls the C library that runs modules by the structures and functions of ``libcoexec/coexec.h``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tvm_coexec.errors import DeviceError, FileFormatError, InputError, KernelError, SyncTimeoutError

SOURCE_FOLDER = Path(__file__).with_name("libcoexec")

OK, GPU_HANGS = 0, 5
_ERRORS: dict[int, type[Exception]] = {
    1: SyncTimeoutError,
    2: SyncTimeoutError,
    3: KernelError,
    4: DeviceError,
    GPU_HANGS: SyncTimeoutError,
    6: FileFormatError,
    7: InputError,
    8: DeviceError,
    9: DeviceError,
}
"""What is raised for each status."""

MECHANISMS = {"svm": 1, "event": 2, "mapped": 4}
"""As ``coexec.h`` numbers them."""
TIMELINE, CHAIN = 1, 2
"""Flags of a program, as ``coexec.h`` numbers them."""
ACTIONS = ("enqueue", "call", "signal", "wait", "transfer", "kernel", "signal_wait")

_pointer, _size, _int, _long, _text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32, ctypes.c_int64, ctypes.c_char_p


class DeviceOptions(ctypes.Structure):
    _fields_ = (
        ("opencl_library", _text),
        ("name", _text),
        *((name, _pointer) for name in ("context", "device", "queue")),
        ("mechanism", _int),
        ("cores", ctypes.POINTER(_int)),
        ("core_count", _int),
        ("cache_folder", _text),
        ("separate_memory", _int),
    )


class ModuleOptions(ctypes.Structure):
    _fields_ = (("timeout_ns", _long), ("yields", _int), ("first_launch_ns", _long), ("adapts", _int))


class Step(ctypes.Structure):
    _fields_ = (("name", _text), *((name, _int) for name in ("units", "cpu_units", "has_cpu", "has_gpu")))


class Adaptation(ctypes.Structure):
    _fields_ = (("moves", _int), ("is_on_trial", _int), ("pace", ctypes.c_double))


class Memory(ctypes.Structure):
    _fields_ = tuple((name, _size) for name in ("weight_bytes", "activation_bytes", "scratch_bytes"))


class Part(ctypes.Structure):
    _fields_ = tuple((name, _int) for name in ("step", "cpu_units", "gpu_units"))


class ProgramFacts(ctypes.Structure):
    _fields_ = tuple((name, _int) for name in ("sync_count", "timeline_is_faithful", "span_count"))


class Span(ctypes.Structure):
    _fields_ = (
        *((name, _int) for name in ("is_gpu", "action", "part", "awaited")),
        *((name, _long) for name in ("start_ns", "end_ns")),
    )


_Out = ctypes.POINTER(_pointer)
_FUNCTIONS: dict[str, tuple[Any, Sequence[Any]]] = {
    "last_error": (_text, ()),
    "device_open": (_int, (ctypes.POINTER(DeviceOptions), _Out)),
    "device_close": (None, (_pointer,)),
    "threads_ran_on": (_int, (_pointer, ctypes.POINTER(_int), _int)),
    "module_open_fd": (_int, (_pointer, ctypes.c_int, ctypes.POINTER(ModuleOptions), _Out)),
    "module_close": (None, (_pointer,)),
    "describe_step": (_int, (_pointer, _int, ctypes.POINTER(Step))),
    "describe_adaptation": (None, (_pointer, ctypes.POINTER(Adaptation))),
    "set_splits": (_int, (_pointer, ctypes.POINTER(_int), _int)),
    "run": (_int, (_pointer,)),
    "call": (_int, (_pointer, ctypes.POINTER(_pointer), ctypes.POINTER(_pointer))),
    "benchmark": (_int, (_pointer, _int, _int, ctypes.POINTER(_long))),
    "memory_use": (None, (_pointer, ctypes.POINTER(Memory))),
    "prepare": (_int, (_pointer, ctypes.POINTER(Part), _int, _int, _Out)),
    "network_program": (_int, (_pointer, _int, _Out)),
    "program_close": (None, (_pointer,)),
    "program_run": (_int, (_pointer,)),
    "describe_program": (None, (_pointer, ctypes.POINTER(ProgramFacts))),
    "spans": (_int, (_pointer, ctypes.POINTER(Span), _int, ctypes.POINTER(_int))),
    "block": (_int, (_pointer, _int, _Out, ctypes.POINTER(_size))),
    "publish": (_int, (_pointer, _int)),
}
"""Result and parameters of each function that is called from here; its name begins with ``coexec_``."""


def library_file() -> Path:
    """Where the library lies that was built with this package.

    Raises
    ------
    DeviceError
        It is missing.
    """
    found = sorted(SOURCE_FOLDER.parent.glob("libcoexec*.so"))
    if not found:
        raise DeviceError(f"the C library is not built in {SOURCE_FOLDER.parent}; install the package again by pip")
    return found[0]


@cache
def library() -> Any:
    """The library as it was built with this package.

    Raises
    ------
    DeviceError
        It is missing or cannot be loaded.
    """
    try:
        loaded = ctypes.CDLL(str(library_file()))
    except OSError as error:
        raise DeviceError(f"the C library cannot be loaded ({error}); install the package again by pip") from None
    for name, (result, parameters) in _FUNCTIONS.items():
        function = getattr(loaded, f"coexec_{name}")
        function.restype, function.argtypes = result, tuple(parameters)
    return loaded


def error_of(status: int) -> Exception:
    """What to raise for the status of the call that this thread has just made."""
    return _ERRORS[status](library().coexec_last_error().decode(errors="replace"))
