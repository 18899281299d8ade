"""Check that this machine has everything that is needed.

Checked in order: the C compiler, TVM and its code generators, the OpenCL loader and drivers, every OpenCL device,
then on one device a tiny kernel and a flag's round trip in shared memory, and the RPC tracker. One line each; a line
that begins with FAIL ends with the remedy.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from tvm_coexec.errors import CoexecError, DeviceError, MeasurementError, ToolchainError

from . import one_line
from .options import add_device_option

if TYPE_CHECKING:
    from tvm_coexec.runtime.device import Device

EXAMPLES = """\
examples:
  tvm-coexec doctor
  tvm-coexec doctor --device intel

The exit status is 0 if everything works, 1 if anything fails.
"""

_TRACKER_TIMEOUT_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_option(parser)


def run(*, device: str | None) -> int:
    report = _Report()
    report.check("C compiler", _c_compiler)
    report.check("TVM", _tvm)
    if report.check("OpenCL loader", _opencl_loader):
        _check_device(report, device)
    report.check("RPC tracker", _tracker)
    return report.summary()


def _check_device(report: _Report, name: str | None) -> None:
    from tvm_coexec.runtime.discovery import list_devices

    report.check("OpenCL drivers", _opencl_drivers)
    for info in list_devices():
        report.check("found", partial(str, f"{info.name}, sync {info.mechanism} ({info.mechanism_reason})"))
    opened: list[Device] = []
    if report.check("device", lambda: _open(name, opened)):
        (device,) = opened
        report.check("tiny kernel", lambda: _tiny_kernel(device))
        report.check("flag round trip", lambda: _flag_round_trip(device))
        device.close()


class _Report:
    """Prints one line a check, and counts the failures."""

    def __init__(self) -> None:
        self._failures = 0

    def check(self, name: str, function: Callable[[], str]) -> bool:
        """Run a check, which returns what it found, or raises an error that names cause and remedy."""
        try:
            print(f"ok    {name}: {function()}", flush=True)
        except CoexecError as error:
            self._failures += 1
            print(f"FAIL  {name}: {one_line(error)}", flush=True)
            return False
        return True

    def summary(self) -> int:
        print("everything works" if not self._failures else f"{self._failures} of the checks failed")
        return 1 if self._failures else 0


def _c_compiler() -> str:
    from tvm_coexec.compiler.toolchain import c_compiler, link

    compiler = c_compiler()
    link([])
    return f"{compiler} builds the runtime's C code"


def _tvm() -> str:
    try:
        import tvm
        from tvm.target.codegen import llvm_get_system_cpu
    except (ImportError, OSError) as error:
        raise ToolchainError(
            f"TVM cannot be imported ({error}); try `pip install --force-reinstall apache-tvm`"
        ) from None
    missing = [
        kind for kind in ("llvm", "opencl") if not tvm.get_global_func(f"target.build.{kind}", allow_missing=True)
    ]
    if missing:
        raise ToolchainError(
            f"TVM {tvm.__version__} generates no code for {' and '.join(missing)}; install apache-tvm's wheel"
        )
    return f"{tvm.__version__} generates code for LLVM ({llvm_get_system_cpu()}) and OpenCL"


def _opencl_loader() -> str:
    from tvm_coexec.runtime.loader import import_opencl

    try:
        pyopencl = import_opencl()
    except (ImportError, OSError) as error:
        raise DeviceError(
            f"pyopencl cannot be imported ({error}); try `pip install --force-reinstall pyopencl`"
        ) from None
    return f"pyopencl {pyopencl.VERSION_TEXT}"


def _opencl_drivers() -> str:
    from tvm_coexec.runtime.discovery import discover
    from tvm_coexec.runtime.loader import INTEL_PACKAGE, drivers_limited_by, intel_library

    found = discover()
    if found.problems:
        raise DeviceError(f"{'; '.join(found.problems)}; reinstall or remove that driver")
    aliases = {info.alias for info, _ in found.devices}
    if intel_library() and "intel" not in aliases and not drivers_limited_by():
        raise DeviceError(f"{INTEL_PACKAGE} is installed but does not load; try `pip install tvm-coexec[intel]`")
    return f"{len(aliases)} load"


def _open(name: str | None, opened: list[Device]) -> str:
    from tvm_coexec.runtime.cores import listed
    from tvm_coexec.runtime.device import open_device

    device = open_device(name)
    opened.append(device)
    notes = "".join(f"; {note}" for note in device.notes)
    return f"{device.label}, {listed(device.cpu_cores)} for the CPU's side{notes}"


def _tiny_kernel(device: Device) -> str:
    from tvm_coexec.runtime.probe import check_arithmetic

    check_arithmetic(device.context, device.queue)
    return "runs, and its result is right"


def _flag_round_trip(device: Device) -> str:
    from tvm_coexec.runtime.probe import flag_round_trip_us

    if device.mechanism != "svm":
        return f"not needed: {device.info.mechanism_reason}, so that the two sides synchronise by events"
    with _on_core(device.cpu_cores[0]):
        return f"{flag_round_trip_us(device.context, device.queue):.1f} µs in fine-grained SVM"


@contextmanager
def _on_core(core: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _tracker() -> str:
    try:
        from tvm_coexec.rpc.lease import TrackerConnection
        from tvm_coexec.rpc.tracker import local_tracker

        with local_tracker(None) as address, TrackerConnection(address, _TRACKER_TIMEOUT_S) as connection:
            connection.keys()
    except ImportError as error:
        raise MeasurementError(
            f"the tracker cannot be imported ({error}); try `pip install cloudpickle psutil tornado`"
        ) from None
    return "starts on loopback, and answers"
