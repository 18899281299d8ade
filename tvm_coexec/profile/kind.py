"""Which devices are of one kind: what is measured of one is true of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What devices of one kind have in common.

    Parameters
    ----------
    cpu_cores, gpu_cores
        How many work for each side.
    """

    name: str
    cpu: str | None
    mechanism: str
    cpu_cores: int
    gpu_cores: int
    driver: str | None

    def __str__(self) -> str:
        return f"{self.name} with driver {self.driver} beside {self.cpu_cores} of the cores of {self.cpu}"


def kind_of(facts: Mapping[str, Any]) -> Kind:
    """The kind of a device, from what it says of itself."""
    cpu_cores, gpu_cores = (len(facts.get(f"{side}_cores") or ()) for side in ("cpu", "gpu"))
    return Kind(
        facts["name"], facts.get("cpu_model"), facts["mechanism"], cpu_cores, gpu_cores, facts.get("driver_version")
    )
