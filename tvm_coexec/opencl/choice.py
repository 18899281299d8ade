"""A device of this machine as it was chosen: which one, the cores of both sides, and how these synchronise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm_coexec.errors import DeviceError
from tvm_coexec.machine import cores
from tvm_coexec.machine.facts import machine_facts

from .discovery import MECHANISMS, DeviceInfo, discover, select

_ONE_CORE = "both sides have one core, which a side that waited for a flag would keep from the other"


@dataclass(frozen=True)
class DeviceChoice:
    """A device of a machine, its cores and its mechanism; None leaves a choice to the program."""

    name: str | None = None
    cpu_cores: tuple[int, ...] | None = None
    gpu_cores: tuple[int, ...] | None = None
    mechanism: str | None = None

    @classmethod
    def again(cls, facts: Mapping[str, Any]) -> DeviceChoice:
        """The device that has these facts, opened as it was when they were asked for."""
        cpu_cores, gpu_cores = (tuple(facts[f"{side}_cores"]) or None for side in ("cpu", "gpu"))
        return cls(facts["name"], cpu_cores, gpu_cores, facts["mechanism"])

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DeviceChoice:
        """Read the fields by name, lists standing for tuples."""
        fields: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in values.items()}
        return cls(**fields)

    def check(self) -> dict[str, Any]:
        """Refuse a device, cores or a mechanism that there are not on this machine, and open nothing.

        Returns
        -------
        Of the device's facts those that are known before it is open.
        """
        info, _, cpu_cores, gpu_cores = self.find()
        return facts_of(info, cpu_cores, gpu_cores)

    def find(self) -> tuple[DeviceInfo, Any, tuple[int, ...], tuple[int, ...]]:
        """Find the device with its pyopencl object, and the cores of the CPU's and of the GPU's side.

        Raises
        ------
        DeviceError
            It is missing or ambiguous, or lacks what is asked of it.
        """
        gpu_chosen = None if self.gpu_cores is None else cores.check_cores(self.gpu_cores, "--gpu-cores")
        cpu_chosen = None if self.cpu_cores is None else cores.check_cores(self.cpu_cores, "--cpu-cores")
        bench_gpu, bench_cpu = _divide(gpu_chosen, cpu_chosen)
        info, handle = select(discover(len(bench_gpu)), self.name)
        info = _with_mechanism(info, self.mechanism)
        if info.device_type == "cpu":
            if self.mechanism is None and not set(bench_cpu).isdisjoint(bench_gpu):
                info = dataclasses.replace(info, mechanism="event", mechanism_reason=_ONE_CORE)
            if not set(bench_cpu).isdisjoint(bench_gpu) and len(cores.usable_cores()) > 1:
                raise DeviceError(
                    f"the CPU's side gets {cores.listed(bench_cpu)} and the OpenCL device {cores.listed(bench_gpu)},"
                    " but each spins while it waits for the other; give them different --cpu-cores and --gpu-cores"
                )
            return info, handle, bench_cpu, bench_gpu
        if gpu_chosen:
            raise DeviceError(f"--gpu-cores is for OpenCL CPU devices; {info.name} is none and has no cores to choose")
        return info, handle, cpu_chosen or cores.usable_cores(), ()


def facts_of(info: DeviceInfo, cpu_cores: tuple[int, ...], gpu_cores: tuple[int, ...]) -> dict[str, Any]:
    """What is known of a device and its machine, as JSON values."""
    chosen = {"cpu_cores": list(cpu_cores), "gpu_cores": list(gpu_cores)}
    return {**info.to_json(), **chosen, **machine_facts(cpu_cores[0])}


def _divide(
    gpu_chosen: tuple[int, ...] | None, cpu_chosen: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cores of an OpenCL CPU device and of the CPU's side: as chosen, the side left open gets the cores that remain."""
    default_gpu, default_cpu = cores.default_cores()
    if gpu_chosen is None and cpu_chosen is None:
        return default_gpu, default_cpu
    usable = cores.usable_cores()
    gpu = gpu_chosen or tuple(core for core in usable if core not in (cpu_chosen or ())) or usable
    cpu = cpu_chosen or tuple(core for core in usable if core not in gpu) or usable
    return gpu, cpu


def _with_mechanism(info: DeviceInfo, mechanism: str | None) -> DeviceInfo:
    if mechanism is None or mechanism == info.mechanism:
        return info
    if mechanism not in MECHANISMS:
        raise DeviceError(f"there is no mechanism {mechanism!r}; choose from {', '.join(MECHANISMS)}")
    if mechanism == "svm":
        raise DeviceError(f"{info.name} has {info.mechanism_reason}, which the mechanism 'svm' needs; use 'event'")
    reason = "as asked for"
    if mechanism == "mapped":
        reason += "; OpenCL does not promise that it works, a probe of 100,000 hand-overs lost none here"
    return dataclasses.replace(info, mechanism=mechanism, mechanism_reason=reason)
