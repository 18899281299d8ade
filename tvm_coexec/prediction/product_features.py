"""What the predictors see of a GPU's dense kernels besides the rest: how they fill its compute units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from tvm_coexec import schedules
from tvm_coexec.layers import AnyLayer, Hardware, Variant
from tvm_coexec.schedules.gpu_bound import Steps

from .reads import Reads

PRODUCT_NAMES = (
    "bound_cycles",
    "steps",
    "resident_groups",
    "occupied_items",
    "rounds",
    "unit_imbalance",
    "registers",
    "group_local_bytes",
    "local_traffic",
    "global_traffic",
    "finish_traffic",
)

_PREFIX = "step:"
_STEP_FACTS = tuple(field.name for field in fields(Steps) if field.name != "groups")
_ANY_SIZE = 1 << 30
"""What was measured fits the device."""


@dataclass(frozen=True)
class Processor:
    """What the features know of the processor of one side.

    Parameters
    ----------
    workers
        Threads of the CPU, or compute units of the OpenCL device.
    reads
        How fast it reads, which shows its caches.
    local_bytes
        Local memory that a work-group of the OpenCL device may have.
    """

    workers: int
    reads: Reads = field(default_factory=Reads)
    local_bytes: int = 32 << 10

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Processor:
        """Read what :func:`dataclasses.asdict` made."""
        return cls(**{**values, "reads": Reads.from_json(values["reads"])})


def step_facts(layer: AnyLayer, variant: Variant) -> dict[str, float]:
    """What a work-group of a GPU's dense kernel does; nothing of other kernels."""
    if not schedules.gpu_products.computes(variant):
        return {}
    steps = schedules.gpu_products.steps(schedules.family(layer).extents(layer), variant)
    return {f"{_PREFIX}{name}": float(getattr(steps, name)[0]) for name in _STEP_FACTS}


def product_features(
    known: Mapping[str, np.ndarray], groups: np.ndarray, processor: Processor
) -> dict[str, np.ndarray]:
    """The features of halves of which :func:`step_facts` are known, one value a half; zero for other kernels."""
    if f"{_PREFIX}{_STEP_FACTS[0]}" not in known:
        return {}
    steps = Steps(groups=groups, **{name: known[f"{_PREFIX}{name}"] for name in _STEP_FACTS})
    steps = replace(steps, items=np.maximum(steps.items, 1), registers=np.maximum(steps.registers, 1))
    hardware = Hardware(workers=processor.workers, max_group_size=_ANY_SIZE, local_bytes=processor.local_bytes)
    together, rounds = steps.rounds(hardware)
    found = {
        "bound_cycles": np.nan_to_num(steps.cycles(hardware), posinf=0.0),
        "steps": rounds * steps.count,
        "resident_groups": steps.resident(hardware),
        "occupied_items": together * steps.items,
        "rounds": rounds,
        "unit_imbalance": np.ceil(groups / processor.workers) * processor.workers / groups,
        "registers": steps.registers,
        "group_local_bytes": steps.local_bytes,
        "local_traffic": groups * steps.count * steps.local_traffic,
        "global_traffic": groups * steps.count * steps.global_traffic,
        "finish_traffic": groups * steps.finish_traffic,
    }
    return {name: np.where(steps.count > 0, values, 0.0) for name, values in found.items()}
