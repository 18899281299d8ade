"""The kinds of phones that can be emulated, and the files in which such a phone shows its cores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ARM = 0x41
"""The number of Arm Ltd. among those who design cores."""

_LOWEST_KHZ = 300_000
_THERMAL_ZONES = {"cpu-0-0": 45_000, "cpu-1-0": 48_000, "gpuss-0": 51_000, "battery": 33_000}
"""Temperatures in thousandths of a degree."""


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind with one clock.

    Parameters
    ----------
    part
        Arm's number of the core.
    capacity
        Speed of a core as Linux's scheduler sees it, the fastest of the phone having 1024.
    """

    cores: int
    part: int
    highest_khz: int
    capacity: int


KINDS = {
    "cortex-a53": (Cluster(4, 0xD03, 1_401_600, 710), Cluster(4, 0xD03, 2_016_000, 1024)),
    "cortex-a76": (
        Cluster(4, 0xD05, 1_804_800, 380),
        Cluster(3, 0xD0B, 2_419_200, 870),
        Cluster(1, 0xD0B, 2_841_600, 1024),
    ),
}
"""The clusters of a phone whose big cores are such; cortex-a55 (0xD05), its LITTLE ones, have the same instructions."""


def disguise(kind: str, features: str, folder: Path) -> None:
    """Write what a phone of a kind shows in ``/proc/cpuinfo``, and the part of ``/sys`` that tells of cores and heat.

    Parameters
    ----------
    features
        The CPU's, as Linux names them.
    """
    clusters = KINDS[kind]
    (folder / "sys" / "class").mkdir(parents=True, exist_ok=True)
    (folder / "cpuinfo").write_text(_cpuinfo(clusters, features))
    for name, content in _files(clusters):
        path = folder / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def _cpuinfo(clusters: tuple[Cluster, ...], features: str) -> str:
    return "".join(
        f"processor\t: {core}\nBogoMIPS\t: 38.40\nFeatures\t: {features}\nCPU implementer\t: {ARM:#x}\n"
        f"CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {cluster.part:#x}\nCPU revision\t: 0\n\n"
        for core, cluster in enumerate(_each_core(clusters))
    )


def _each_core(clusters: tuple[Cluster, ...]) -> list[Cluster]:
    return [cluster for cluster in clusters for _ in range(cluster.cores)]


def _files(clusters: tuple[Cluster, ...]) -> Iterator[tuple[str, object]]:
    """List each file below ``/sys`` with its content."""
    cores = _each_core(clusters)
    cpus, everyone = "devices/system/cpu", f"0-{len(cores) - 1}"
    for name in ("online", "possible", "present"):
        yield f"{cpus}/{name}", everyone
    for core, cluster in enumerate(cores):
        first = cores.index(cluster)
        mine = f"{cpus}/cpu{core}"
        yield f"{mine}/cpu_capacity", cluster.capacity
        yield f"{mine}/regs/identification/midr_el1", f"{ARM << 24 | 1 << 20 | 0xF << 16 | cluster.part << 4:#018x}"
        yield f"{mine}/topology/physical_package_id", 0
        yield f"{mine}/topology/core_id", core
        yield f"{mine}/topology/thread_siblings", f"{1 << core:x}"
        yield f"{mine}/topology/thread_siblings_list", core
        yield f"{mine}/topology/core_siblings", f"{(1 << len(cores)) - 1:x}"
        yield f"{mine}/topology/core_siblings_list", everyone
        yield f"{mine}/cpufreq/related_cpus", " ".join(map(str, range(first, first + cluster.cores)))
        yield f"{mine}/cpufreq/scaling_governor", "schedutil"
        for limit in ("cpuinfo", "scaling"):
            yield f"{mine}/cpufreq/{limit}_min_freq", _LOWEST_KHZ
            yield f"{mine}/cpufreq/{limit}_max_freq", cluster.highest_khz
        yield f"{mine}/cpufreq/scaling_cur_freq", cluster.highest_khz
    for number, (name, temperature) in enumerate(_THERMAL_ZONES.items()):
        yield f"class/thermal/thermal_zone{number}/type", name
        yield f"class/thermal/thermal_zone{number}/temp", temperature
