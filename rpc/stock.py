"""A device whose server has nothing of ours: TVM's own, in Python or C++, or its Android app.

The host sends the C runtime that it has built for the device, and calls what that offers. It tells what it knows by
lines of ``key=value``; what is compared with float64, and in what order things are timed, is decided here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from tvm_coexec.machine.clusters import LITTLE, Cluster, clusters_in, frequency_file
from tvm_coexec.machine.cores import listed
from tvm_coexec.machine.facts import cpu_facts, versions
from tvm_coexec.module.package import Package
from tvm_coexec.opencl.discovery import alias_of, mechanism_of

from .connection import Connection
from .far_module import FarModule
from .far_runtime import FarRuntime
from .measuring import DeviceFaultError, Measuring

_NUMBERS = ("compute_units", "max_group_size", "global_memory_bytes", "local_memory_bytes", "local_memory_type")


class StockDevice(Measuring):
    """The functions of one session on such a device; see :class:`FarRuntime` for the parameters."""

    def __init__(self, connection: Connection, wait_for: Callable[[Future[Any]], Any]) -> None:
        super().__init__()
        self._runtime = FarRuntime(connection, wait_for)
        self._contents: dict[str, bytes] = {}
        self._modules: dict[str, FarModule] = {}
        self._facts: dict[str, Any] | None = None

    def put(self, content: bytes, name: str) -> None:
        """Send a module."""
        self._runtime.upload(content, name)
        self._contents[name] = content
        self._modules.pop(name, None)

    def load(self, name: str) -> FarModule:
        """The module, as it is driven from here."""
        self.facts()
        if name not in self._modules:
            with tempfile.TemporaryFile() as file:
                file.write(self._contents[name])
                file.flush()
                self._modules[name] = FarModule(self._runtime, name, Package.map(file, name))
        return self._modules[name]

    def facts(self, request: Any = None) -> dict[str, Any]:
        """Everything that a measurement on the device depends on; opens it."""
        if self._facts is None:
            triple = self._runtime.send()
            cpuinfo = self._runtime.file("/proc/cpuinfo")
            clusters = clusters_in(cpuinfo, lambda core: self._runtime.file(str(frequency_file(core))))
            cores = _chosen_cores(clusters, self._usable_cores())
            told = self._open(cores)
            if told.get("device_type") == "cpu" and len(cores) > 1:  # it computes on the others
                cores = cores[len(cores) // 2 :]
                told = self._open(cores)
            self._facts = _facts(told, cpuinfo, clusters, cores, is_android="android" in triple)
        return self._facts

    def read_file(self, path: str) -> str:
        """What a file of the device holds; nothing where it cannot be read."""
        return self._runtime.file(path)

    def _open(self, cores: tuple[int, ...]) -> dict[str, str]:
        return dict(self._runtime.ask("facts", cores=",".join(map(str, cores))))

    def _usable_cores(self) -> set[int]:
        """Cores on which the server's processes may run."""
        lines = self._runtime.file("/proc/self/status").splitlines()
        listed = next((line.partition(":")[2] for line in lines if line.startswith("Cpus_allowed_list:")), "")
        ranges = [part.strip().split("-") for part in listed.split(",") if part.strip()]
        return {core for first, *last in ranges for core in range(int(first), int((last or [first])[0]) + 1)}


def _chosen_cores(clusters: tuple[Cluster, ...], usable: set[int]) -> tuple[int, ...]:
    """Choose the big cores, the fastest first; the LITTLE ones alone where no others are usable."""
    ordered = sorted(clusters, key=lambda one: (one.role == LITTLE, -(one.highest_mhz or 0.0)))
    cores = [(core, one.role) for one in ordered for core in one.cores if core in usable or not usable]
    return tuple(core for core, role in cores if role != LITTLE) or tuple(core for core, _ in cores) or (0,)


def _facts(
    told: Mapping[str, str], cpuinfo: str, clusters: tuple[Cluster, ...], cores: tuple[int, ...], *, is_android: bool
) -> dict[str, Any]:
    """What :meth:`tvm_coexec.runtime.device.Device.facts` would give there."""
    if "device_type" not in told:
        raise DeviceFaultError(
            "no OpenCL device is found there; install a driver and its loader, libOpenCL.so, and start the server again"
        )
    svm = told["svm"].split()
    alias, is_bench = alias_of(told["platform"]), told["device_type"] == "cpu"
    name = f"{alias}: {' '.join(told['device_name'].split())}"
    return {
        **{key: int(told[key]) for key in _NUMBERS},
        "image_rows": int(told.get("image_rows", 0)),
        **{key: told[key] for key in ("platform", "vendor", "driver_version", "opencl_version", "device_type")},
        "name": name,
        "alias": alias,
        "svm": svm,
        "command_buffers": "cl_khr_command_buffer" in told.get("extensions", "").split(),
        "unified_memory": told.get("unified_memory") == "1",
        "mechanism": told["mechanism"],
        "mechanism_reason": mechanism_of(svm)[1],
        "label": f"{name} (bench device: a CPU OpenCL device plays the GPU)" if is_bench else name,
        "is_bench": is_bench,
        "cpu_cores": list(cores),
        "gpu_cores": [],
        "notes": _notes(told, cores),
        "machine": told["machine"],
        "is_android": is_android,
        "kernel": told["kernel"],
        **cpu_facts(cpuinfo),
        "clusters": [one.to_json() for one in clusters],
        "cache_bytes": {},
        "versions": versions("tvm"),  # this machine's TVM makes the device's kernels
    }


def _notes(told: Mapping[str, str], cores: tuple[int, ...]) -> list[str]:
    """What was seen of the CPU's threads that its user should know."""
    held = {int(core) for core in told.get("held_cores", "").split(",") if core}
    elsewhere = [core for core in cores if core not in held]
    if "held_cores" not in told or not elsewhere:
        return []
    return [
        f"threads that are to run on {listed(elsewhere)} run elsewhere: keep the server in the foreground, or start it"
        " where it may use these cores"
    ]
