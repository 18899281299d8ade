"""What is known of the machine and the software on it; reports and samples are stored with it."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tvm_coexec.errors import FileFormatError
from tvm_coexec.version import __version__

from .clusters import clusters, clusters_in

_CPUINFO = Path("/proc/cpuinfo")
_CPU_FOLDER = Path("/sys/devices/system/cpu")
_PACKAGES = {
    "tvm": ("apache-tvm",),
    "pyopencl": ("pyopencl",),
    "xgboost": ("xgboost", "xgboost-cpu"),
    "numpy": ("numpy",),
}
_INSTRUCTIONS = re.compile(
    r"(avx|fma|f16c|bmi|sse|ssse|popcnt|movbe|aes|vaes|asimd|neon|sve|fphp|atomics|lrcpc|i8mm|bf16)"
)
"""How the names of CPU features begin that a compiler makes use of."""
_KIND_OF_CPU = re.compile(r"(vendor_id|cpu family|model|stepping|flags|Features|CPU)\b", re.ASCII)
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
"""Letters by which Linux writes the sizes of caches."""


def machine_facts(core: int) -> dict[str, Any]:
    """Plain values about the CPU, as ``core`` sees it, the kernel and the libraries' versions."""
    return {
        "machine": platform.machine(),
        "is_android": hasattr(sys, "getandroidapilevel"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **cpu_facts(_CPUINFO.read_text()),
        "clusters": [cluster.to_json() for cluster in clusters()],
        "cache_bytes": _caches(core),
        "versions": versions(*_PACKAGES),
    }


def versions(*names: str) -> dict[str, str | None]:
    """List the versions of this program and of the libraries ``tvm``, ``pyopencl``, ``xgboost`` and ``numpy`` here."""
    return {"tvm_coexec": __version__} | {name: _version(*_PACKAGES[name]) for name in names}


def cpu_facts(cpuinfo: str) -> dict[str, Any]:
    """What ``/proc/cpuinfo`` of this machine or of another tells of the CPU."""
    described = _described(cpuinfo)
    model = described.get("model name") or described.get("Hardware") or " + ".join(map(str, clusters_in(cpuinfo)))
    return {"cpu_model": model, "cpu_features": _features(described)}


def check_cpu(built_for: Mapping[str, Any]) -> None:
    """Refuse a module whose code this CPU cannot run: it would end the process with an illegal instruction.

    Parameters
    ----------
    built_for
        What :func:`machine_facts` gave on the machine that the module was built for.
    """
    machine, features = built_for.get("machine"), built_for.get("cpu_features")
    if machine != platform.machine():
        raise FileFormatError(
            f"the module was built for a CPU of kind {machine}, this one is {platform.machine()}; build it again here"
        )
    missing = sorted(instructions(features or ()) - instructions_here())
    if missing:
        raise FileFormatError(
            f"the module was built for a CPU with {', '.join(missing)}, which this one lacks; build it again here"
        )


def instructions(features: Iterable[str]) -> frozenset[str]:
    """Keep those of a CPU's features that a compiler makes use of."""
    return frozenset(name for name in features if _INSTRUCTIONS.match(name))


def cpus_here() -> str:
    """What this machine says of its CPUs that stays as it is while they run: kinds, models and features."""
    lines = dict.fromkeys(_CPUINFO.read_text().splitlines())
    return "\n".join(line for line in lines if _KIND_OF_CPU.match(line))


def instructions_here() -> frozenset[str]:
    """The instructions that this machine's CPU has."""
    return instructions(_features(_described(_CPUINFO.read_text())))


def _features(described: Mapping[str, str]) -> list[str]:
    return (described.get("flags") or described.get("Features") or "").split()


def _described(cpuinfo: str) -> dict[str, str]:
    """The fields of the first CPU, and those that stand behind the last."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _caches(core: int) -> dict[str, int]:
    """Size of each cache that ``core`` uses: ``l1d``, ``l1i``, ``l2``, …; nothing where the kernel does not tell."""
    sizes = {}
    for index in sorted((_CPU_FOLDER / f"cpu{core}" / "cache").glob("index*")):
        kind = {"Data": "d", "Instruction": "i"}.get((index / "type").read_text().strip(), "")
        size = (index / "size").read_text().strip()
        sizes[f"l{(index / 'level').read_text().strip()}{kind}"] = int(size.rstrip("KMG")) * _UNITS.get(size[-1], 1)
    return sizes


@cache
def _version(*packages: str) -> str | None:
    """That of the first of some packages that is installed: a device that only runs modules lacks the compiler's."""
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return None
