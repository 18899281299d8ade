"""What code is generated for: derived from a device's facts, so that a host can compile for a device elsewhere."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm_coexec.errors import DeviceError
from tvm_coexec.layers import Hardware
from tvm_coexec.runtime.machine import instructions, instructions_here

_VECTORS = (  # a CPU feature, the width of its vector registers in bytes, their number
    ("avx512f", 64, 32),
    ("avx2", 32, 16),
    ("asimd", 16, 32),
    ("neon", 16, 32),
)

_LEVELS = (  # of x86-64, and what the kernel calls the features by which they are known
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}),
    ("x86-64", set[str]()),
)


@dataclass(frozen=True)
class Target:
    """TVM's description of the CPU, and the hardware that schedules are chosen for."""

    llvm: tuple[tuple[str, str], ...]
    hardware: Hardware

    def key(self, side: str) -> str:
        """Names all of it that changes the code of a side's kernels; devices that are alike in that share them."""
        return str(self.llvm) if side == "cpu" else self.hardware.opencl_type


def target_for(facts: Mapping[str, Any]) -> Target:
    """The target of a device.

    Parameters
    ----------
    facts
        What :meth:`tvm_coexec.runtime.device.Device.facts` gave, here or on the device's own machine.
    """
    machine = facts["machine"]
    if machine != platform.machine():
        raise DeviceError(
            f"the device's CPU is {machine}, this machine's {platform.machine()}; cross-compiling is not supported"
        )
    features = set(facts["cpu_features"])
    width, registers = next(((w, r) for name, w, r in _VECTORS if name in features), (16, 16))
    hardware = Hardware(
        width,
        registers,
        facts["device_type"],
        facts["max_group_size"],
        facts["compute_units"],
        facts.get("local_memory_bytes", Hardware.local_bytes),
    )
    return Target((("kind", "llvm"), ("mcpu", _cpu(machine, instructions(features)))), hardware)


def _cpu(machine: str, available: frozenset[str]) -> str:
    """LLVM's name of this machine's CPU, if the device's has all its instructions, else of what they have in common."""
    if instructions_here() <= available:
        return _cpu_here()
    if machine == "x86_64":
        return next(name for name, needed in _LEVELS if needed <= available)
    return "generic"


def _cpu_here() -> str:
    from tvm.target.codegen import llvm_get_system_cpu

    return str(llvm_get_system_cpu())
