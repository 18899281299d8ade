"""Linux and Android tell clocks of cores and temperatures of zones in files: of this machine or of another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .clusters import Cluster

_CPU_FOLDER = Path("/sys/devices/system/cpu")
_ZONES = Path("/sys/class/thermal")
_MOST_ZONES = 100
"""More than phones have, which list tens of them."""

ReadText = Callable[[str], str]
"""Gives what a file holds; nothing where it cannot be read."""


@dataclass(frozen=True)
class Sensors:
    """What was read at one time.

    Parameters
    ----------
    mhz
        Clock of the first core of each cluster, by the clusters' names; of those that tell one.
    celsius
        Temperatures, by the zones' names.
    """

    mhz: dict[str, float]
    celsius: dict[str, float]

    @property
    def hottest(self) -> float | None:
        return max(self.celsius.values(), default=None)


def read_here(path: str) -> str:
    """What a file of this machine holds."""
    with suppress(OSError):
        return Path(path).read_text()
    return ""


def read_sensors(clusters: Iterable[Cluster], read: ReadText = read_here) -> Sensors:
    """Read all that there are."""
    mhz: dict[str, float] = {}
    for one in clusters:
        khz = read(str(_CPU_FOLDER / f"cpu{one.cores[0]}" / "cpufreq" / "scaling_cur_freq")).strip()
        if khz.isdecimal():
            mhz[f"{one.name} {one.role} {one.cores[0]}-{one.cores[-1]}"] = int(khz) / 1000
    celsius: dict[str, float] = {}
    for number in range(_MOST_ZONES):
        zone = _ZONES / f"thermal_zone{number}"
        name = read(str(zone / "type")).strip()
        if not name:
            break
        with suppress(ValueError):
            celsius[name] = int(read(str(zone / "temp"))) / 1000
    return Sensors(mhz, celsius)
