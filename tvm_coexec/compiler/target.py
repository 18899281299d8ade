"""What code is generated for: derived from a device's facts alone, so that a host compiles for devices elsewhere."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tvm_coexec.cache import user_cache
from tvm_coexec.errors import DeviceError, InputError
from tvm_coexec.layers import Hardware
from tvm_coexec.machine.clusters import run_in_order
from tvm_coexec.machine.facts import cpus_here, instructions, instructions_here

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

_ITEM_REGISTERS = {"qualcomm": (170, False), "arm": (66, True)}
"""How many registers a work-item may need, and whether reads are put off, by a word of a GPU vendor's name.

Mesa's compiler for Adreno 630 keeps in memory what some kernels need beyond 177, that for Adreno 740 beyond 201. Those
for Mali-G52 and G610 read late; they keep nothing in memory of kernels that need 62, and a part of some that need 70.
"""

_ORDINARY_MEMORY = 2
"""What OpenCL calls the type of local memory that is no memory of its own."""

_MOST_NAMES_BYTES = 1 << 16
"""An entry is the name of a processor."""

_OTHER_MACHINES = ("aarch64", "x86_64")
"""The kinds of CPU that are built for on a machine of another kind."""

ANDROID = "android29"
"""The oldest Android whose C library has all that the runtime calls."""

_ARM_FEATURES = {  # what Linux calls a feature of an arm64 CPU, and LLVM
    "asimd": "neon",
    "atomics": "lse",
    "asimdrdm": "rdm",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "lrcpc": "rcpc",
    "i8mm": "i8mm",
    "bf16": "bf16",
}

_ARM_CORES = {True: "cortex-a55", False: "cortex-a76"}
"""Whose timing code is made for, by whether the cores run in order. LLVM's model of a generic arm64 core is that of one
in order. By llvm-mca, code for it takes a cortex-a55 up to twice as long as its own code (a first convolution reaches
54 % of its peak, not 112), and code for cortex-a76 keeps fewer sums on the stack of larger cores."""


_KINDS_OF_FACTS = {
    **dict.fromkeys(("name", "label", "mechanism", "machine", "device_type"), str),
    **dict.fromkeys(("cpu_features", "cpu_cores", "gpu_cores"), list),
    **dict.fromkeys(("max_group_size", "compute_units", "local_memory_bytes", "image_rows"), int),
}
"""The kind of value that each fact has on which a build depends."""

_OPTIONAL_FACTS = {"gpu_cores", "local_memory_bytes", "image_rows"}


@dataclass(frozen=True)
class Target:
    """TVM's description of the CPU, the system whose libraries are linked, and what schedules are chosen for.

    Parameters
    ----------
    triple
        The CPU and the system as compilers name them; None for this machine's own.
    """

    llvm: tuple[tuple[str, str | tuple[str, ...]], ...]
    hardware: Hardware
    triple: str | None = None

    def llvm_options(self) -> dict[str, Any]:
        """The description as TVM takes it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.llvm}

    def key(self, side: str) -> str:
        """Names all of it that changes the code of a side's kernels; devices that are alike in that share them."""
        return str(self.llvm) if side == "cpu" else self.hardware.opencl_type


def check_facts(facts: Any, owner: str, remedy: str) -> None:
    """Refuse facts of ``owner`` that lack what a build needs, have what is of another kind, or name another CPU."""
    known = facts.keys() if isinstance(facts, Mapping) else set[str]()
    missing = _KINDS_OF_FACTS.keys() - _OPTIONAL_FACTS - known
    if missing:
        raise InputError(f"{owner} lacks {', '.join(sorted(missing))}; {remedy}")
    wrong = [name for name, kind in _KINDS_OF_FACTS.items() if name in facts and not _is_kind(facts[name], kind)]
    if not _are_clusters(facts.get("clusters", [])):
        wrong.append("clusters")
    if wrong:
        raise InputError(f"{owner} has wrong values of {', '.join(wrong)}; {remedy}")
    if not _is_built_for(facts["machine"]):
        raise InputError(f"{owner} names a CPU of kind {facts['machine']!r}, for which nothing is built; {remedy}")


def _is_built_for(machine: str) -> bool:
    return machine in (*_OTHER_MACHINES, platform.machine())


def _is_kind(value: Any, kind: type) -> bool:
    """Whether a value of JSON is of a kind; lists are of texts, or of whole numbers."""
    if isinstance(value, list):
        return kind is list and all(type(one) in (str, int) for one in value)
    return type(value) is kind


def _are_clusters(value: Any) -> bool:
    """Whether a value of JSON is what :func:`run_in_order` reads: a list of objects, each with a name and its cores."""
    return isinstance(value, list) and all(
        isinstance(one, Mapping) and _is_kind(one.get("name"), str) and _is_kind(one.get("cores"), list)
        for one in value
    )


def target_for(facts: Mapping[str, Any]) -> Target:
    """Make the target of a device.

    Parameters
    ----------
    facts
        What :meth:`tvm_coexec.runtime.device.Device.facts` gave, here or on the device's own machine.
    """
    machine = str(facts["machine"])
    features = set(facts["cpu_features"])
    width, registers = next(((w, r) for name, w, r in _VECTORS if name in features), (16, 16))
    hardware = Hardware(
        width,
        registers,
        facts["device_type"],
        facts["max_group_size"],
        facts["compute_units"],
        facts.get("local_memory_bytes", Hardware.local_bytes),
        *_item_registers(str(facts.get("vendor", ""))),
        facts.get("local_memory_type") != _ORDINARY_MEMORY,
        facts.get("image_rows", Hardware.image_rows),
        run_in_order(facts.get("clusters", ()), facts.get("cpu_cores", ())),
    )
    if machine == platform.machine() and not facts.get("is_android"):
        return Target((("kind", "llvm"), ("mcpu", _cpu(machine, instructions(features)))), hardware)
    return _for_another_machine(machine, features, hardware, is_android=bool(facts.get("is_android")))


def _item_registers(vendor: str) -> tuple[int, bool]:
    """What is known of a vendor; of others, what NVIDIA's GPUs have."""
    known = (_ITEM_REGISTERS[word] for word in vendor.lower().split() if word in _ITEM_REGISTERS)
    return next(known, (Hardware.item_registers, Hardware.reads_late))


def _for_another_machine(machine: str, features: set[str], hardware: Hardware, *, is_android: bool) -> Target:
    """The target of a CPU or a system that is not this machine's: no instruction is used that its facts do not name."""
    if machine not in _OTHER_MACHINES:
        raise DeviceError(
            f"the device's CPU is of kind {machine}, for which nothing is built; use a device with"
            f" {' or '.join(_OTHER_MACHINES)}"
        )
    triple = f"{machine}-linux-{ANDROID if is_android else 'gnu'}"
    cpu: tuple[tuple[str, str | tuple[str, ...]], ...] = (("mcpu", _cpu_level(features)),)
    if machine == "aarch64":
        cpu = (
            ("mcpu", _ARM_CORES[hardware.in_order]),
            ("mattr", tuple(f"{'+' if had in features else '-'}{name}" for had, name in _ARM_FEATURES.items())),
        )
    return Target((("kind", "llvm"), ("mtriple", triple), *cpu), hardware, triple)


def _cpu(machine: str, available: frozenset[str]) -> str:
    """LLVM's name of this machine's CPU, if the device's has all its instructions, else of what they have in common."""
    if instructions_here() <= available:
        return _cpu_here()
    return _cpu_level(available) if machine == "x86_64" else "generic"


def _cpu_level(available: Iterable[str]) -> str:
    """The highest level of x86-64 whose instructions are all there."""
    return next(name for name, needed in _LEVELS if needed <= set(available))


def _cpu_here() -> str:
    """LLVM's name of this machine's CPU: TVM tells it once, and takes a second to load, so it is kept."""
    key = f"{importlib.metadata.version('apache-tvm')}\n{cpus_here()}"
    kept = user_cache("processors", _MOST_NAMES_BYTES)
    name = kept.get(key)
    if name is None:
        from tvm.target.codegen import llvm_get_system_cpu

        name = str(llvm_get_system_cpu()).encode()
        kept.put(key, name)
    return name.decode()
