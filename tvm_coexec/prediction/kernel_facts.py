"""What the predictors see of a kernel: its implementation and parameters, its launch, and what a work-item does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from tvm_coexec import schedules
from tvm_coexec.layers import TILE, AnyLayer, Conv2d, ImageLayouts, Variant, tile_count
from tvm_coexec.schedules.dispatch import Dispatch

from .layer_facts import layer_facts
from .product_features import step_facts

IMPLEMENTATION_PREFIX = "implementation:"
PARAMETER_PREFIX = "param:"


@lru_cache(maxsize=8192)
def kernel_facts(layer: AnyLayer, side: str, variant: Variant) -> Mapping[str, float]:
    """What is known of a kernel, and of its layer, whatever the units that a half has."""
    launch = schedules.family(layer).dispatch(layer, side, variant)
    facts = layer_facts(layer)
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
    """Count the work-groups of a unit; a part of one where it computes several."""
    return launch.grid[0] * launch.grid[1] / launch.together


def _unit_elements(layer: AnyLayer, padded_rows: int) -> float:
    """Elements of the output that a unit computes, those of padding included."""
    width = ImageLayouts.alone(layer).output.tile_width if len(layer.output_size) == 4 else TILE
    if layer.axis == "lines":
        return tile_count(layer.out_channels) * width * padded_rows / layer.units
    return (layer.unit_channels if width == TILE else width) * padded_rows


def implementation_feature(layer: AnyLayer, variant: Variant) -> str:
    """The name of the feature that says which kernels a half is made of."""
    along = " by lines" if layer.axis == "lines" else ""
    return f"{IMPLEMENTATION_PREFIX}{layer.op} {variant.implementation}{along}"


def _terms(layer: AnyLayer, variant: Variant) -> float:
    """Products that a half's main kernel adds up for an element."""
    if isinstance(layer, Conv2d):
        return schedules.conv2d.terms(layer, variant)
    return layer_facts(layer)["reduction"]


def _register_tile(layer: AnyLayer, variant: Variant, products_per_item: float) -> dict[str, float]:
    """How many sums a work-item keeps in flight, and how many steps it takes one after the other for a unit."""
    family = schedules.family(layer)
    if hasattr(family, "steps_per_item"):
        return {"accumulators": 0.0, "steps_per_item": family.steps_per_item(layer)}
    if hasattr(family, "accumulators"):
        accumulators = family.accumulators(layer, variant)
        return {"accumulators": accumulators, "steps_per_item": products_per_item / accumulators}
    if schedules.gpu_products.computes(variant):
        accumulators = schedules.gpu_products.accumulators(family.extents(layer), variant)
        return {"accumulators": accumulators, "steps_per_item": products_per_item / accumulators}
    params = dict(variant.params)
    channels = params.get("channels", TILE // params.get("channel_threads", 1))
    accumulators = params.get("rows", 1) * channels * params.get("k_split", 1)
    return {"accumulators": accumulators, "steps_per_item": products_per_item / accumulators}
