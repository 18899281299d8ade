"""Kinds of cores: which cores of this machine are alike, what they are called, and which of a phone's are the big ones.

A phone's cores come in clusters of one kind with one clock. Their makers' numbers name them; a core that is not listed
here keeps its numbers for a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
_CPU_FOLDER = Path("/sys/devices/system/cpu")

BIG, LITTLE = "big", "LITTLE"

_IMPLEMENTERS = {0x41: "Arm", 0x48: "HiSilicon", 0x4E: "NVIDIA", 0x51: "Qualcomm", 0x53: "Samsung", 0x61: "Apple"}

_CORES = {  # by implementer and part
    (0x41, 0xD01): "Cortex-A32",
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD48): "Cortex-X2",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4B): "Cortex-A78C",
    (0x41, 0xD4C): "Cortex-X1C",
    (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD4E): "Cortex-X3",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD82): "Cortex-X4",
    (0x41, 0xD85): "Cortex-X925",
    (0x41, 0xD87): "Cortex-A725",
    (0x51, 0x800): "Kryo 2xx Gold",
    (0x51, 0x801): "Kryo 2xx Silver",
    (0x51, 0x802): "Kryo 3xx Gold",
    (0x51, 0x803): "Kryo 3xx Silver",
    (0x51, 0x804): "Kryo 4xx Gold",
    (0x51, 0x805): "Kryo 4xx Silver",
}

_FRUGAL = re.compile(r"Cortex-A(32|35|53|55|510|520)$|Kryo \dxx Silver$")
"""Cores that are designed to be the LITTLE ones beside others. They run instructions in the order of the program."""


@dataclass(frozen=True)
class Cluster:
    """Cores that are alike.

    Parameters
    ----------
    cores
        Their numbers.
    highest_mhz
        Their highest frequency; None where the kernel does not tell.
    role
        ``big`` or ``LITTLE``; empty where all of the machine's cores are alike.
    """

    name: str
    cores: tuple[int, ...]
    highest_mhz: float | None = None
    role: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a file of facts holds them."""
        return asdict(self) | {"cores": list(self.cores)}

    def __str__(self) -> str:
        clock = "" if self.highest_mhz is None else f" {self.highest_mhz / 1000:.2f} GHz"
        return f"{len(self.cores)}×{self.name}{clock}{f' {self.role}' if self.role else ''}"


def clusters() -> tuple[Cluster, ...]:
    """List the clusters of this machine, in the order of their cores."""
    return clusters_in(_CPUINFO.read_text(), _highest_khz)


def clusters_in(cpuinfo: str, highest_khz: Callable[[int], str] = lambda core: "") -> tuple[Cluster, ...]:
    """List the clusters of this machine or of another.

    Parameters
    ----------
    cpuinfo
        What ``/proc/cpuinfo`` holds there.
    highest_khz
        Gives what the file of a core's highest frequency holds (:func:`frequency_file`); nothing where there is none.
    """
    described = _described(cpuinfo)
    return clusters_of({core: (_core_name(fields), _mhz(highest_khz(core))) for core, fields in described.items()})


def clusters_of(kinds: Mapping[int, tuple[str, float | None]]) -> tuple[Cluster, ...]:
    """Put cores together that have the same name and the same highest frequency."""
    found = [
        Cluster(name, tuple(core for core, kind in kinds.items() if kind == (name, mhz)), mhz)
        for name, mhz in dict.fromkeys(kinds.values())
    ]
    return tuple(replace(one, role=role) for one, role in zip(found, _roles(found), strict=True))


def run_in_order(clusters: Iterable[Mapping[str, Any]], cores: Iterable[int]) -> bool:
    """Whether these cores of a device, described by its facts, are all known to run instructions in their order."""
    names = {core: str(one["name"]) for one in clusters for core in one["cores"]}
    used = [_FRUGAL.match(names.get(core, "")) for core in cores]
    return bool(used) and all(used)


def _roles(found: Sequence[Cluster]) -> list[str]:
    """LITTLE is what is designed to be; where all or none of the cores are, the cluster of the lowest clock."""
    if len(found) == 1:
        return [""]
    frugal = [_FRUGAL.match(one.name) is not None for one in found]
    if all(frugal) or not any(frugal):
        clocks = [one.highest_mhz or 0.0 for one in found]
        frugal = [clock == min(clocks) < max(clocks) for clock in clocks]
    return [(LITTLE if is_frugal else BIG) if any(frugal) else "" for is_frugal in frugal]


def _described(cpuinfo: str) -> dict[int, dict[str, str]]:
    """What the kernel says of each core."""
    found: dict[int, dict[str, str]] = {}
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if name.strip() == "processor" and value.strip().isdecimal():
            fields = found.setdefault(int(value), {})
        elif colon:
            fields.setdefault(name.strip(), value.strip())
    return found


def _core_name(fields: Mapping[str, str]) -> str:
    try:
        implementer, part = int(fields["CPU implementer"], 16), int(fields["CPU part"], 16)
    except (KeyError, ValueError):
        return fields.get("model name", "core")
    maker = _IMPLEMENTERS.get(implementer, f"implementer {implementer:#x}")
    return _CORES.get((implementer, part), f"{maker} {part:#x}")


def frequency_file(core: int) -> Path:
    """Where the kernel tells a core's highest frequency; psutil tells none where any other file of it is missing."""
    return _CPU_FOLDER / f"cpu{core}" / "cpufreq" / "cpuinfo_max_freq"


def _highest_khz(core: int) -> str:
    with suppress(OSError):
        return frequency_file(core).read_text()
    return ""


def _mhz(khz: str) -> float | None:
    return int(khz) / 1000 if khz.strip().isdecimal() else None
