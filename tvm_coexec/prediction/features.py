"""What the predictors see of a half: the layer, the chosen kernel, its launch, and the other side's work meanwhile.

Halves are kept as columns, because planning asks for every split of a layer at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from tvm_coexec import schedules
from tvm_coexec.errors import FileFormatError
from tvm_coexec.layers import (
    EPILOGUE_STEPS,
    ROW_BLOCK,
    TILE,
    AnyLayer,
    Attention,
    Concat,
    Conv2d,
    Elementwise,
    Linear,
    LocalNorm,
    MatMul,
    Place,
    Pool,
    Rearrange,
    Resize,
    RowWise,
    Variant,
    step_name,
    tile_count,
    unit_channels,
)
from tvm_coexec.schedules.dispatch import Dispatch

from .product_features import PRODUCT_NAMES, Processor, product_features, step_facts

FEATURE_VERSION = 5
"""Raised whenever a feature changes its meaning, so that no older predictor is asked with newer features."""

GROUPS = ("layer", "kernel", "dispatch", "contention")
IMPLEMENTATION_PREFIX = "implementation:"
PARAMETER_PREFIX = "param:"

_IMAGE_KINDS = ("concat", "elementwise", "local_norm", "rearrange", "resize", *(f"{kind}_pool" for kind in Pool.KINDS))

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
        "kernel_height",
        "kernel_width",
        "stride",
        "dilation",
        "group_channels",
        "output_width",
        "inputs",
        "by_lines",
        *(
            f"kind:{kind}"
            for kind in ("linear", "conv2d", "attention", "matmul", "place", *RowWise.KINDS, *_IMAGE_KINDS)
        ),
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

    @classmethod
    def of(cls, works: Sequence[Work]) -> Halves:
        """Gather halves that were described one by one."""
        places: dict[tuple[AnyLayer, Variant], int] = {}
        kernel = [places.setdefault((work.layer, work.variant), len(places)) for work in works]
        return cls(
            kernels=tuple(places),
            kernel=np.array(kernel, np.intp),
            units=np.array([work.units for work in works], float),
            other_units=np.array([work.other_units for work in works], float),
        )

    @classmethod
    def grid(cls, layer: AnyLayer, variants: Sequence[Variant], units: np.ndarray, other_units: np.ndarray) -> Halves:
        """Every variant at every pair of ``units`` and ``other_units``; variants change slowest."""
        return cls(
            kernels=tuple((layer, variant) for variant in variants),
            kernel=np.repeat(np.arange(len(variants)), len(units)),
            units=np.tile(np.asarray(units, float), len(variants)),
            other_units=np.tile(np.asarray(other_units, float), len(variants)),
        )


def describe(halves: Halves, side: str, processor: Processor) -> dict[str, np.ndarray]:
    """Every quantity known of the halves, by name, one value a half."""
    known = _gather(halves, side)
    units, other_units = halves.units, halves.other_units
    rows_ratio = known["padded_rows"] / known["rows"]
    groups = known["fixed_groups"] * np.ceil(known["unit_groups"] * units / known["together"])
    waves = np.ceil(groups / processor.workers)
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
            "last_wave_fill": groups / processor.workers - waves + 1,
            "row_padding": rows_ratio,
            "padded_flops": padded_flops,
            "flops_per_group": padded_flops / groups,
            "co_run": (other_units > 0).astype(float),
            "other_units": other_units,
            "other_share": other_units / (units + other_units),
            "combined_bytes": combined_bytes,
            "combined_bytes_per_flop": combined_bytes / np.maximum(flops, 1.0),
            "register_steps": groups * known["group_size"] * known["steps_per_item"],
            "core_overflow_bytes": np.maximum(0.0, weight_bytes + activation_bytes - processor.core_cache_bytes),
            "shared_overflow_bytes": np.clip(
                combined_bytes - processor.shared_cache_bytes, 0.0, weight_bytes + activation_bytes
            ),
        }
    )


def _gather(halves: Halves, side: str) -> dict[str, np.ndarray]:
    """What depends on the layer and the kernel alone: computed once a kernel, then spread over the halves."""
    facts = [_kernel_facts(layer, side, variant) for layer, variant in halves.kernels]
    names = list(dict.fromkeys(name for fact in facts for name in fact))
    table = np.array([[fact.get(name, 0.0) for fact in facts] for name in names], float)
    return dict(zip(names, table[:, halves.kernel], strict=True))


@lru_cache(maxsize=256)
def _layer_facts(layer: AnyLayer) -> Mapping[str, float]:
    facts = _FACTS[type(layer)](layer)
    lines = layer.axis == "lines"
    return {
        **facts,
        "by_lines": float(lines),
        "flops_per_unit": layer.flops / layer.units,
        "shared_weight_bytes": layer.weight_bytes if lines else 0,
        "weight_bytes_per_unit": 0 if lines else layer.weight_bytes / layer.units,
        "activation_bytes_per_unit": (layer.activation_bytes - facts["shared_bytes"]) / layer.units,
        **{f"epilogue:{step_name(step)}": 1.0 for step in layer.epilogue},
    }


def touched_bytes(layer: AnyLayer, units: np.ndarray) -> np.ndarray:
    """Bytes of activations that a half of so many units reads and writes."""
    facts = _layer_facts(layer)
    return facts["shared_bytes"] + facts["activation_bytes_per_unit"] * units


def _linear_facts(layer: Linear) -> dict[str, float]:
    return {
        "rows": layer.m,
        "reduction": layer.k,
        "channels": layer.n,
        "channel_padding": layer.units * TILE / layer.n,
        "shared_bytes": 4 * layer.m * layer.k,
        "kind:linear": 1.0,
    }


def _rowwise_facts(layer: RowWise) -> dict[str, float]:
    return {
        "rows": layer.m,
        "reduction": 1,
        "channels": layer.n,
        "channel_padding": 1.0,
        "shared_bytes": 0,
        f"kind:{layer.kind}": 1.0,
    }


def _conv2d_facts(layer: Conv2d) -> dict[str, float]:
    """With groups a half reads the input of its own channels alone, and by lines that of its own lines."""
    reads_all = layer.groups == 1 and layer.axis == "channels"
    return {
        "rows": layer.batch * layer.out_h * layer.out_w,
        "reduction": layer.taps,
        "channels": layer.out_channels,
        "channel_padding": tile_count(layer.out_channels) * TILE / layer.out_channels,
        "shared_bytes": 4 * layer.batch * layer.h * layer.w * layer.in_channels if reads_all else 0,
        "kernel_height": layer.kernel[0],
        "kernel_width": layer.kernel[1],
        "stride": max(layer.stride),
        "dilation": max(layer.dilation),
        "group_channels": layer.in_channels // layer.groups,
        "output_width": layer.out_w,
        "kind:conv2d": 1.0,
    }


def _image_facts(layer: Pool | Concat | Elementwise | LocalNorm | Rearrange | Resize) -> dict[str, float]:
    """A half reads and writes its own channels or lines alone, but for a few neighbours."""
    batch, out_h, out_w, channels = layer.output_size
    facts = {
        "rows": batch * out_h * out_w,
        "reduction": schedules.images.terms(layer),
        "channels": channels,
        "channel_padding": tile_count(channels) * TILE / channels,
        "shared_bytes": 0,
        "output_width": out_w,
        "inputs": len(layer.input_sizes),
        f"kind:{f'{layer.kind}_pool' if isinstance(layer, Pool) else layer.op}": 1.0,
    }
    if isinstance(layer, Rearrange):
        facts["group_channels"] = math.gcd(TILE, layer.run)
    if isinstance(layer, Pool):
        facts |= {
            "kernel_height": layer.kernel[0],
            "kernel_width": layer.kernel[1],
            "stride": max(layer.stride),
            "dilation": max(layer.dilation),
        }
    return facts


def _attention_facts(layer: Attention) -> dict[str, float]:
    """A head reads its own columns alone."""
    return {
        "rows": layer.batch * layer.queries,
        "reduction": 2 * layer.keys,
        "channels": layer.out_channels,
        "channel_padding": layer.units * layer.unit_heads / layer.heads,
        "shared_bytes": 0,
        "group_channels": layer.value_dim,
        "kind:attention": 1.0,
    }


def _matmul_facts(layer: MatMul) -> dict[str, float]:
    return {
        "rows": layer.rows,
        "reduction": layer.k,
        "channels": layer.out_channels,
        "channel_padding": layer.units * TILE / layer.out_channels,
        "shared_bytes": 4 * layer.batch * layer.heads * layer.m * layer.k,
        "group_channels": layer.n,
        "inputs": 2,
        "kind:matmul": 1.0,
    }


def _place_facts(layer: Place) -> dict[str, float]:
    return {
        "rows": layer.batch * layer.out_rows,
        "reduction": 1,
        "channels": layer.channels,
        "channel_padding": layer.units * TILE / layer.channels,
        "shared_bytes": 0,
        "kind:place": 1.0,
    }


_FACTS: dict[type, Callable[[Any], dict[str, float]]] = {
    Linear: _linear_facts,
    RowWise: _rowwise_facts,
    Conv2d: _conv2d_facts,
    **dict.fromkeys((Pool, Concat, Elementwise, LocalNorm, Rearrange, Resize), _image_facts),
    Attention: _attention_facts,
    MatMul: _matmul_facts,
    Place: _place_facts,
}


@lru_cache(maxsize=8192)
def _kernel_facts(layer: AnyLayer, side: str, variant: Variant) -> Mapping[str, float]:
    launch = schedules.family(layer).dispatch(layer, side, variant)
    facts = _layer_facts(layer)
    terms = _terms(layer, variant)
    unit_items = _unit_groups(launch) * launch.group_size
    return {
        **facts,
        **_register_tile(layer, variant, terms * _unit_elements(layer, launch.padded_rows) / unit_items),
        implementation_feature(layer, variant): 1.0,
        **{f"{PARAMETER_PREFIX}{name}": float(value) for name, value in variant.params},
        "group_size": launch.group_size,
        **_group_counts(launch),
        **step_facts(layer, variant),
        "padded_rows": launch.padded_rows,
        "extra_terms": terms / facts["reduction"],
    }


def _group_counts(launch: Dispatch) -> dict[str, float]:
    """Work-groups that do not depend on the units, those of a unit, and units of one of these."""
    fixed, of_unit = launch.grid[1 - (launch.unit_axis or 0)], launch.grid[launch.unit_axis or 0]
    return {"fixed_groups": fixed, "unit_groups": of_unit, "together": launch.together}


def _unit_groups(launch: Dispatch) -> float:
    """Work-groups of a unit; a part of one where it computes several."""
    return launch.grid[0] * launch.grid[1] / launch.together


def _unit_elements(layer: AnyLayer, padded_rows: int) -> float:
    """Elements of the output that a unit computes, those of padding included."""
    if layer.axis == "lines":
        return tile_count(layer.out_channels) * TILE * padded_rows / layer.units
    return unit_channels(layer) * padded_rows


def implementation_feature(layer: AnyLayer, variant: Variant) -> str:
    """The name of the feature that says which kernels a half is made of."""
    along = " by lines" if layer.axis == "lines" else ""
    return f"{IMPLEMENTATION_PREFIX}{layer.op} {variant.implementation}{along}"


def _terms(layer: AnyLayer, variant: Variant) -> float:
    """Products that a half's main kernel adds up for an element."""
    if isinstance(layer, Conv2d):
        return schedules.conv2d.terms(layer, variant)
    return _layer_facts(layer)["reduction"]


def _register_tile(layer: AnyLayer, variant: Variant, products_per_item: float) -> dict[str, float]:
    """How many sums a work-item keeps in flight, and how many steps it takes one after the other for a unit."""
    if isinstance(layer, RowWise):
        return {"accumulators": 0.0, "steps_per_item": ROW_BLOCK * layer.n}
    if isinstance(layer, Place):
        return {"accumulators": 0.0, "steps_per_item": TILE}
    if isinstance(layer, Attention):
        accumulators = schedules.attention.accumulators(layer, variant)
        return {"accumulators": accumulators, "steps_per_item": products_per_item / accumulators}
    if schedules.gpu_products.computes(variant):
        accumulators = schedules.gpu_products.accumulators(schedules.family(layer).extents(layer), variant)
        return {"accumulators": accumulators, "steps_per_item": products_per_item / accumulators}
    params = dict(variant.params)
    channels = params.get("channels", TILE // params.get("channel_threads", 1))
    accumulators = params["rows"] * channels * params.get("k_split", 1)
    return {"accumulators": accumulators, "steps_per_item": products_per_item / accumulators}


@dataclass(frozen=True)
class FeatureSet:
    """The names of a predictor's features, in the order of its columns."""

    names: tuple[str, ...]

    @classmethod
    def for_halves(cls, halves: Halves, groups: Sequence[str] = GROUPS) -> FeatureSet:
        """The features of some groups; those of the kernels are named after the kernels met in ``halves``."""
        kernel_names = {implementation_feature(layer, variant) for layer, variant in halves.kernels}
        kernel_names |= {f"{PARAMETER_PREFIX}{name}" for _, variant in halves.kernels for name, _ in variant.params}
        names = _FIXED_NAMES | {"kernel": (*_FIXED_NAMES["kernel"], *sorted(kernel_names))}
        if any(schedules.gpu_products.computes(variant) for _, variant in halves.kernels):
            names |= {"dispatch": (*_FIXED_NAMES["dispatch"], *PRODUCT_NAMES)}
        return cls(tuple(name for group in GROUPS if group in groups for name in names[group]))

    def __post_init__(self) -> None:
        fixed = {name for names in (*_FIXED_NAMES.values(), PRODUCT_NAMES) for name in names}
        for name in self.names:
            if name not in fixed and not name.startswith((IMPLEMENTATION_PREFIX, PARAMETER_PREFIX)):
                raise FileFormatError(f"this release computes no feature {name!r}; tune the profile again")

    def matrix(self, described: dict[str, np.ndarray]) -> np.ndarray:
        """One row a half; kernels and epilogues that these halves do not have are zero."""
        count = len(described["units"])
        matrix = np.zeros((count, len(self.names)), np.float32)
        for column, name in enumerate(self.names):
            if name in described:
                matrix[:, column] = described[name]
        return matrix
