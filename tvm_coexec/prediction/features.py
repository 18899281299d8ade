"""Predictors see of a half the layer, the chosen kernel, its launch, and the other side's work meanwhile.

Halves are kept as columns, because planning asks for every split of a layer at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tvm_coexec import schedules
from tvm_coexec.errors import FileFormatError
from tvm_coexec.layers import EPILOGUE_STEPS, KIND_PREFIX, AnyLayer, Pool, RowWise, Variant, known_operators

from .kernel_facts import IMPLEMENTATION_PREFIX, PARAMETER_PREFIX, implementation_feature, kernel_facts
from .product_features import PRODUCT_NAMES, Processor, product_features

FEATURE_VERSION = 6
"""Raised whenever a feature changes its meaning, so that no older predictor is asked with newer features."""

GROUPS = ("layer", "kernel", "dispatch", "contention")

THREAD_NAMES = ("threads", "thread_units", "thread_flops")
"""Features where samples differ in threads: how many compute the half, and the most units and FLOPs of one of them."""

_KINDS = (
    *("linear", "conv2d", "attention", "matmul", "place", *RowWise.KINDS),
    *("concat", "elementwise", "local_norm", "rearrange", "resize", *(f"{kind}_pool" for kind in Pool.KINDS)),
)
"""Kinds that each predictor has a column for, even where no layer is of them: a tree draws some of all columns, and its
parameters were chosen for so many. Further kinds get theirs where there are such layers."""

_FIXED_NAMES: dict[str, tuple[str, ...]] = {
    "layer": (
        "rows",
        "reduction",
        "channels",
        "units",
        "flops",
        "weight_bytes",
        "activation_bytes",
        "flops_per_byte",
        "read_us",
        "kernel_height",
        "kernel_width",
        "stride",
        "dilation",
        "group_channels",
        "output_width",
        "inputs",
        "by_lines",
        *(f"{KIND_PREFIX}{kind}" for kind in _KINDS),
        *(f"epilogue:{step}" for step in EPILOGUE_STEPS),
    ),
    "kernel": ("accumulators", "steps_per_item"),
    "dispatch": (
        "group_size",
        "groups",
        "work_items",
        "waves",
        "last_wave_fill",
        "row_padding",
        "extra_terms",
        "channel_padding",
        "padded_flops",
        "flops_per_group",
    ),
    "contention": ("co_run", "other_units", "other_share", "combined_bytes", "combined_bytes_per_flop"),
}


class Work(Protocol):
    """A half to be described; a sample is one."""

    @property
    def layer(self) -> AnyLayer: ...
    @property
    def variant(self) -> Variant: ...
    @property
    def units(self) -> int: ...
    @property
    def other_units(self) -> int: ...


@dataclass(frozen=True)
class Halves:
    """Halves of one side as columns: row ``i`` is ``units[i]`` units of kernel ``kernels[kernel[i]]``.

    ``other_units`` counts the units that the other side works on meanwhile; 0 where the half runs alone.
    """

    kernels: Sequence[tuple[AnyLayer, Variant]]
    kernel: np.ndarray
    units: np.ndarray
    other_units: np.ndarray

    def __len__(self) -> int:
        return len(self.kernel)

    @property
    def by_several_threads(self) -> bool:
        """Whether there are numbers of the CPU's threads to choose from."""
        return any(variant.threads for _, variant in self.kernels)

    @classmethod
    def of(cls, works: Sequence[Work]) -> Halves:
        """Gather halves that were described one by one."""
        indices: dict[tuple[AnyLayer, Variant], int] = {}
        kernel = [indices.setdefault((work.layer, work.variant), len(indices)) for work in works]
        return cls(
            kernels=tuple(indices),
            kernel=np.array(kernel, np.intp),
            units=np.array([work.units for work in works], float),
            other_units=np.array([work.other_units for work in works], float),
        )

    @classmethod
    def grid(cls, layer: AnyLayer, variants: Sequence[Variant], units: np.ndarray, other_units: np.ndarray) -> Halves:
        """List every variant at every pair of ``units`` and ``other_units``; variants change slowest."""
        return cls(
            kernels=tuple((layer, variant) for variant in variants),
            kernel=np.repeat(np.arange(len(variants)), len(units)),
            units=np.tile(np.asarray(units, float), len(variants)),
            other_units=np.tile(np.asarray(other_units, float), len(variants)),
        )


def describe(halves: Halves, side: str, processor: Processor) -> dict[str, np.ndarray]:
    """Describe the halves by every quantity that is known of them, one value a half."""
    known = _gather(halves, side)
    units, other_units = halves.units, halves.other_units
    rows_ratio = known["padded_rows"] / known["rows"]
    groups = known["fixed_groups"] * np.ceil(known["unit_groups"] * units / known["together"])
    workers = _workers(halves, processor)
    waves = np.ceil(groups / workers)
    thread_units = np.ceil(units / workers)
    flops = known["flops_per_unit"] * units
    padded_flops = flops * rows_ratio * known["channel_padding"] * known["extra_terms"]
    weight_bytes = known["shared_weight_bytes"] + known["weight_bytes_per_unit"] * units
    activation_bytes = known["shared_bytes"] + known["activation_bytes_per_unit"] * units
    bytes_per_unit = known["weight_bytes_per_unit"] + known["activation_bytes_per_unit"]
    combined_bytes = known["shared_bytes"] + known["shared_weight_bytes"] + bytes_per_unit * (units + other_units)
    return (
        known
        | product_features(known, groups, processor)
        | {
            "units": units,
            "flops": flops,
            "weight_bytes": weight_bytes,
            "activation_bytes": activation_bytes,
            "flops_per_byte": flops / (weight_bytes + activation_bytes),
            "groups": groups,
            "work_items": groups * known["group_size"],
            "waves": waves,
            "last_wave_fill": groups / workers - waves + 1,
            "threads": workers,
            "thread_units": thread_units,
            "thread_flops": padded_flops * thread_units / units,
            "row_padding": rows_ratio,
            "padded_flops": padded_flops,
            "flops_per_group": padded_flops / groups,
            "co_run": (other_units > 0).astype(float),
            "other_units": other_units,
            "other_share": other_units / (units + other_units),
            "combined_bytes": combined_bytes,
            "combined_bytes_per_flop": combined_bytes / np.maximum(flops, 1.0),
            "register_steps": groups * known["group_size"] * known["steps_per_item"],
            "read_us": processor.reads.us(weight_bytes + activation_bytes, other_units),
        }
    )


def _workers(halves: Halves, processor: Processor) -> np.ndarray:
    """Threads of the CPU, or compute units, that compute each half."""
    workers = np.array([variant.threads or processor.workers for _, variant in halves.kernels], float)
    return workers[halves.kernel]


def _gather(halves: Halves, side: str) -> dict[str, np.ndarray]:
    """What depends on the layer and the kernel alone: computed once a kernel, then spread over the halves."""
    facts = [kernel_facts(layer, side, variant.kernel) for layer, variant in halves.kernels]
    names = list(dict.fromkeys(name for fact in facts for name in fact))
    table = np.array([[fact.get(name, 0.0) for fact in facts] for name in names], float)
    return dict(zip(names, table[:, halves.kernel], strict=True))


@dataclass(frozen=True)
class FeatureSet:
    """The names of a predictor's features, in the order of its columns."""

    names: tuple[str, ...]

    @classmethod
    def for_halves(cls, halves: Halves, groups: Sequence[str] = GROUPS) -> FeatureSet:
        """The features of some groups, and what the layers and kernels met in ``halves`` have of their own."""
        layer_names = {name for layer, _ in halves.kernels for name in layer.facts() if ":" in name}
        kernel_names = {implementation_feature(layer, variant) for layer, variant in halves.kernels}
        kernel_names |= {f"{PARAMETER_PREFIX}{name}" for _, variant in halves.kernels for name, _ in variant.params}
        has_products = any(schedules.gpu_products.computes(variant) for _, variant in halves.kernels)
        names = _FIXED_NAMES | {
            "layer": (*_FIXED_NAMES["layer"], *sorted(layer_names - set(_FIXED_NAMES["layer"]))),
            "kernel": (*_FIXED_NAMES["kernel"], *sorted(kernel_names)),
            "dispatch": (
                *_FIXED_NAMES["dispatch"],
                *(PRODUCT_NAMES if has_products else ()),
                *(THREAD_NAMES if halves.by_several_threads else ()),
            ),
        }
        return cls(tuple(name for group in GROUPS if group in groups for name in names[group]))

    def __post_init__(self) -> None:
        fixed = {name for names in (*_FIXED_NAMES.values(), PRODUCT_NAMES, THREAD_NAMES) for name in names}
        prefixes = (KIND_PREFIX, IMPLEMENTATION_PREFIX, PARAMETER_PREFIX, *(f"{op}:" for op in known_operators()))
        for name in self.names:
            if name not in fixed and not name.startswith(prefixes):
                raise FileFormatError(f"this release computes no feature {name!r}; tune the profile again")

    def matrix(self, described: dict[str, np.ndarray]) -> np.ndarray:
        """Make one row a half; kinds, kernels and epilogues that these halves do not have are zero."""
        count = len(described["units"])
        matrix = np.zeros((count, len(self.names)), np.float32)
        for column, name in enumerate(self.names):
            if name in described:
                matrix[:, column] = described[name]
        return matrix
