"""Which OpenCL devices there are, what they can do, and which one a name means."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm_coexec.errors import DeviceError, first_line
from tvm_coexec.machine import cores

from . import loader

REMEDY = "try `apt install pocl-opencl-icd`, or `pip install tvm-coexec[intel]`"
MECHANISMS = ("svm", "event", "mapped")

_ALIASES = (  # part of a platform's name in lower case, alias; the first that fits
    ("portable computing language", "pocl"),
    ("intel(r) opencl graphics", "intel-gpu"),
    ("intel(r) opencl hd graphics", "intel-gpu"),
    ("fpga", "fpga"),
    ("intel", "intel"),
    ("nvidia", "nvidia"),
    ("amd", "amd"),
    ("qualcomm", "adreno"),
    ("arm", "mali"),
    ("powervr", "powervr"),
    ("rusticl", "rusticl"),
    ("apple", "apple"),
)


_IMAGES_OVER_BUFFERS = "cl_khr_image2d_from_buffer"


@dataclass(frozen=True)
class DeviceInfo:
    """What an OpenCL device is and can do.

    Parameters
    ----------
    name
        ``alias: device name``, unique on this machine; what reports and files call the device.
    alias
        A short word for the platform: ``pocl``, ``intel``, ``nvidia``, …
    device_type
        ``gpu``, ``cpu`` or ``accelerator``.
    compute_units
        Those that serve the GPU's side; on a CPU device its cores are shared with the CPU's side.
    local_memory_type
        1 where work-groups have memory of their own, 2 where theirs is ordinary memory, as OpenCL numbers them.
    image_rows
        Most rows of an image that is made over a buffer, as kernels read weights; 0 where the device makes none.
    svm
        Of ``coarse``, ``fine``, ``fine-system`` and ``atomics``, those that the device has.
    mechanism, mechanism_reason
        How the two sides would synchronise: ``svm`` (flags in shared memory) or ``event``, or ``mapped`` (flags in
        buffers that stay mapped) where that was asked for; and why.
    """

    name: str
    platform: str
    alias: str
    vendor: str
    driver_version: str
    opencl_version: str
    device_type: str
    compute_units: int
    max_group_size: int
    global_memory_bytes: int
    local_memory_bytes: int
    local_memory_type: int
    image_rows: int
    svm: tuple[str, ...]
    command_buffers: bool
    unified_memory: bool
    mechanism: str
    mechanism_reason: str

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "svm": list(self.svm)}


@dataclass(frozen=True)
class Found:
    """Every device with its pyopencl object, in order of preference, and what of drivers and devices fails."""

    devices: list[tuple[DeviceInfo, Any]]
    problems: list[str]


def list_devices() -> list[DeviceInfo]:
    """List every OpenCL device of this machine; the one that is used when none is named comes first."""
    return [info for info, _ in discover().devices]


def find_device(name: str | None = None) -> DeviceInfo:
    """Find the device that ``name`` means.

    Parameters
    ----------
    name
        Any unambiguous part of the device's name, platform or alias, in any case; by default a GPU if there is
        one, then PoCL, then Intel's CPU runtime.

    Raises
    ------
    DeviceError
        No device fits, or several do.
    """
    return select(discover(), name)[0]


def discover(worker_count: int | None = None) -> Found:
    """Query every driver; ``worker_count`` is the number of PoCL's threads if this is the process's first query."""
    cl = loader.import_opencl()
    count = worker_count or len(cores.default_cores()[0])
    platforms, problems = loader.query_devices(count)
    found: list[tuple[DeviceInfo, Any]] = []
    names: dict[str, int] = {}
    for platform, devices in platforms:
        for device in devices:
            try:
                info = _describe(platform, device, count)
            except cl.Error as error:
                problems.append(f"a device of {platform.name.strip()!r} fails: {first_line(error)}")
                continue
            names[info.name] = names.get(info.name, 0) + 1
            if names[info.name] > 1:
                info = dataclasses.replace(info, name=f"{info.name} #{names[info.name]}")
            found.append((info, device))
    found.sort(key=lambda pair: _preference(pair[0]))
    return Found(found, problems)


def select(found: Found, name: str | None) -> tuple[DeviceInfo, Any]:
    """Select the device among ``found`` that ``name`` means, with its pyopencl object."""
    if not found.devices:
        raise DeviceError(_nothing_found(found))
    if name is None:
        return found.devices[0]
    wanted = name.strip().lower()
    for matches in (
        [pair for pair in found.devices if wanted == pair[0].name.lower()],
        [pair for pair in found.devices if wanted == pair[0].alias],
        [pair for pair in found.devices if wanted in f"{pair[0].name}\n{pair[0].platform}".lower()],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise DeviceError(f"{name!r} could be {_names(matches)}; name more of it")
    raise DeviceError(f"no OpenCL device is called {name!r}; there is {_names(found.devices)}{_hint(wanted)}")


def _names(pairs: list[tuple[DeviceInfo, Any]]) -> str:
    return ", ".join(repr(info.name) for info, _ in pairs)


def _nothing_found(found: Found) -> str:
    limit = loader.drivers_limited_by()
    causes = found.problems + ([f"{limit} limits the drivers that are looked at"] if limit else [])
    because = f" ({'; '.join(causes)})" if causes else ""
    return f"no OpenCL device found{because}; {REMEDY}"


def _hint(wanted: str) -> str:
    limit = loader.drivers_limited_by()
    if limit:
        return f" ({limit} limits the drivers that are looked at)"
    remedies = {"pocl": "`apt install pocl-opencl-icd`", "intel": "`pip install tvm-coexec[intel]`"}
    return f"; try {remedies[wanted]}" if wanted in remedies else ""


def _preference(info: DeviceInfo) -> tuple[int, int]:
    kinds = {("gpu", ""): 0, ("cpu", "pocl"): 1, ("cpu", "intel"): 2}
    rank = kinds.get((info.device_type, "" if info.device_type == "gpu" else info.alias), 3)
    return rank, MECHANISMS.index(info.mechanism)


def _describe(platform: Any, device: Any, worker_count: int) -> DeviceInfo:
    svm = _svm_levels(device)
    mechanism, reason = mechanism_of(svm)
    alias = alias_of(platform.name)
    device_type = _device_type(device)
    units, extensions = device.max_compute_units, device.extensions.split()
    return DeviceInfo(
        name=f"{alias}: {' '.join(device.name.split())}",
        platform=platform.name.strip(),
        alias=alias,
        vendor=device.vendor.strip(),
        driver_version=device.driver_version.strip(),
        opencl_version=device.version.strip(),
        device_type=device_type,
        compute_units=min(units, worker_count) if device_type == "cpu" else units,
        max_group_size=device.max_work_group_size,
        global_memory_bytes=device.global_mem_size,
        local_memory_bytes=device.local_mem_size,
        local_memory_type=device.local_mem_type,
        image_rows=device.image2d_max_height if _IMAGES_OVER_BUFFERS in extensions else 0,
        svm=svm,
        command_buffers="cl_khr_command_buffer" in extensions,
        unified_memory=bool(device.host_unified_memory),
        mechanism=mechanism,
        mechanism_reason=reason,
    )


def alias_of(platform_name: str) -> str:
    """Give a short word for a platform."""
    lowered = platform_name.lower()
    for part, alias in _ALIASES:
        if part in lowered:
            return alias
    return lowered.split()[0] if lowered.split() else "opencl"


def _device_type(device: Any) -> str:
    import pyopencl as cl

    if device.type & cl.device_type.GPU:
        return "gpu"
    return "cpu" if device.type & cl.device_type.CPU else "accelerator"


def _svm_levels(device: Any) -> tuple[str, ...]:
    import pyopencl as cl

    try:
        bits = device.svm_capabilities
    except cl.LogicError:  # drivers of OpenCL 1.2 do not know the question
        return ()
    capabilities = cl.device_svm_capabilities
    levels = (
        ("coarse", capabilities.COARSE_GRAIN_BUFFER),
        ("fine", capabilities.FINE_GRAIN_BUFFER),
        ("fine-system", capabilities.FINE_GRAIN_SYSTEM),
        ("atomics", capabilities.ATOMICS),
    )
    return tuple(level for level, bit in levels if bits & bit)


def mechanism_of(svm: Sequence[str]) -> tuple[str, str]:
    """How the two sides of a device with such shared virtual memory would synchronise, and why."""
    if "fine" not in svm:
        return "event", f"{'only coarse-grained' if svm else 'no'} shared virtual memory"
    if "atomics" not in svm:
        return "event", "fine-grained shared virtual memory, but without atomics"
    return "svm", "fine-grained shared virtual memory with atomics"
