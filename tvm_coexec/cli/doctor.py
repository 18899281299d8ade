"""Check that this machine, or a device at a tracker, has everything that is needed.

Checked in order: the C compiler, TVM and its code generators, the OpenCL loader and drivers, every OpenCL device,
then on one device a tiny kernel and a flag's round trip in shared memory, and the RPC tracker. With --tracker and
--key: the tracker, the device's server, the device and its cores, the compiler for it, and a layer that is built here,
sent there, computed by either side and by both, and compared with float64. One line each; a line that begins with FAIL
ends with the remedy.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from tvm_coexec.errors import CoexecError, DeviceError, InputError, MeasurementError, ToolchainError

from . import one_line
from .options import add_device_option, add_tracker_options

if TYPE_CHECKING:
    from tvm_coexec.rpc.client import Session
    from tvm_coexec.rpc.lease import TrackerAddress
    from tvm_coexec.runtime.device import Device

EXAMPLES = """\
examples:
  tvm-coexec doctor
  tvm-coexec doctor --device intel
  tvm-coexec doctor --tracker 192.168.0.2:9190 --key my-phone

The exit status is 0 if everything works, 1 if anything fails.
"""

_TRACKER_TIMEOUT_S = 10.0
_SESSION_TIMEOUT_S = 240.0
"""The first launch of a kernel takes some drivers a minute."""
_CHECKED_LAYER = (9, 70, 100)
"""Rows, reduction and channels: none of them fills whole vectors or tiles, so that remainders are checked, too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_option(parser)
    add_tracker_options(parser)


def run(*, device: str | None, tracker: str | None, key: str | None) -> int:
    report = _Report()
    if tracker is not None or key is not None:
        _check_remote(report, device, tracker, key)
        return report.summary()
    if device is not None:
        _refuse_unknown(device)
    report.check("C compiler", _c_compiler)
    report.check("TVM", _tvm)
    if report.check("OpenCL loader", _opencl_loader):
        _check_device(report, device)
    report.check("RPC tracker", _tracker)
    return report.summary()


def _refuse_unknown(device: str) -> None:
    """Refuse a name that no device has; where drivers fail, the checks say which, and it may be that device's."""
    from tvm_coexec.opencl.discovery import find_device

    try:
        _opencl_loader()
        _opencl_drivers()
    except CoexecError:
        return
    find_device(device)


def _check_device(report: _Report, name: str | None) -> None:
    from tvm_coexec.opencl.discovery import list_devices

    report.check("OpenCL drivers", _opencl_drivers)
    for info in list_devices():
        report.check("found", partial(str, f"{info.name}, sync {info.mechanism} ({info.mechanism_reason})"))
    opened: list[Device] = []
    if report.check("device", lambda: _open(name, opened)):
        (device,) = opened
        report.check("tiny kernel", lambda: _tiny_kernel(device))
        report.check("flag round trip", lambda: _flag_round_trip(device))
        device.close()


def _check_remote(report: _Report, device: str | None, tracker: str | None, key: str | None) -> None:
    from tvm_coexec.opencl.choice import DeviceChoice
    from tvm_coexec.rpc.client import Session
    from tvm_coexec.rpc.tracker import check_beside_tracker, parse_tracker

    check_beside_tracker(DeviceChoice(device))
    if tracker is None or key is None:
        raise InputError("a device at a tracker is named by --tracker and --key together; give both")
    address = parse_tracker(tracker)
    session = Session(address, key, session_timeout_s=_SESSION_TIMEOUT_S)
    facts: dict[str, Any] = {}
    if not (report.check("tracker", lambda: _registered(address)) and report.check("server", lambda: _lend(session))):
        return
    with closing(session):
        if report.check("device", lambda: _remote_device(session, facts)):
            report.check("cores", lambda: _remote_cores(facts))
            if report.check("compiler", lambda: _compiler_for(facts)):
                report.check("layer", lambda: _remote_layer(session, facts))


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
    from tvm_coexec.opencl.loader import import_opencl

    try:
        pyopencl = import_opencl()
    except (ImportError, OSError) as error:
        raise DeviceError(
            f"pyopencl cannot be imported ({error}); try `pip install --force-reinstall pyopencl`"
        ) from None
    return f"pyopencl {pyopencl.VERSION_TEXT}"


def _opencl_drivers() -> str:
    from tvm_coexec.opencl.discovery import discover
    from tvm_coexec.opencl.loader import INTEL_PACKAGE, drivers_limited_by, intel_library

    found = discover()
    if found.problems:
        raise DeviceError(f"{'; '.join(found.problems)}; reinstall or remove that driver")
    aliases = {info.alias for info, _ in found.devices}
    if intel_library() and "intel" not in aliases and not drivers_limited_by():
        raise DeviceError(f"{INTEL_PACKAGE} is installed but does not load; try `pip install tvm-coexec[intel]`")
    return f"{len(aliases)} load"


def _open(name: str | None, opened: list[Device]) -> str:
    from tvm_coexec.machine.cores import listed
    from tvm_coexec.runtime.device import open_device

    device = open_device(name)
    opened.append(device)
    notes = "".join(f"; {note}" for note in device.notes)
    return f"{device.label}, {listed(device.cpu_cores)} for the CPU's side{notes}"


def _tiny_kernel(device: Device) -> str:
    from .device_checks import check_arithmetic

    check_arithmetic(device.context, device.queue)
    return "runs, and its result is right"


def _flag_round_trip(device: Device) -> str:
    from .device_checks import flag_round_trip_us

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


def _registered(address: TrackerAddress) -> str:
    from tvm_coexec.rpc.lease import TrackerConnection

    with TrackerConnection(address, _TRACKER_TIMEOUT_S) as connection:
        counts = Counter(key for key, _ in connection.registered())
    return f"{address} has {', '.join(f'{count} × {key}' for key, count in sorted(counts.items())) or 'no device'}"


def _lend(session: Session) -> str:
    session.reconnect()
    return f"{session.address} answers"


def _remote_device(session: Session, facts: dict[str, Any]) -> str:
    facts.update(session.facts())
    return (
        f"{facts['label']}, driver {facts['driver_version']}, sync {facts['mechanism']} ({facts['mechanism_reason']})"
    )


def _remote_cores(facts: Mapping[str, Any]) -> str:
    from tvm_coexec.machine.clusters import Cluster
    from tvm_coexec.machine.cores import listed

    clusters = " + ".join(str(Cluster(**fields)) for fields in facts["clusters"])
    notes = "".join(f"; {note}" for note in facts["notes"])
    return f"{clusters}; {listed(facts['cpu_cores'])} for the CPU's side{notes}"


def _compiler_for(facts: Mapping[str, Any]) -> str:
    from tvm_coexec.compiler.target import target_for
    from tvm_coexec.compiler.toolchain import c_compiler, cross_compiler

    target = target_for(facts)
    compiler = c_compiler() if target.triple is None else " ".join(cross_compiler(target.triple))
    return f"{compiler} builds for {target.triple or 'CPUs like this one'}"


def _remote_layer(session: Session, facts: Mapping[str, Any]) -> str:
    from tvm_coexec import schedules
    from tvm_coexec.compiler.probes import single_layer
    from tvm_coexec.compiler.target import target_for
    from tvm_coexec.layers import Linear
    from tvm_coexec.profile.records import Point

    layer, target = Linear(*_CHECKED_LAYER, ("bias", "relu")), target_for(facts)
    family = schedules.family(layer)
    cpu, gpu = (family.default_variant(layer, side, target.hardware) for side in ("cpu", "gpu"))
    splits = [Point(count, layer.units - count, 1) for count in (0, 1, layer.units)]
    result = session.measure(single_layer(layer, cpu, gpu, target, facts).to_bytes(), splits)
    return f"computed by the GPU, by both and by the CPU, {result.max_rel_error:.1e} off float64"


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
