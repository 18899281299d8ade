"""What the predictors see of a layer, whichever kernels compute it: sizes, operations, bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from tvm_coexec import schedules
from tvm_coexec.layers import (
    TILE,
    AnyLayer,
    Attention,
    Concat,
    Conv2d,
    Elementwise,
    Linear,
    LocalNorm,
    MatMul,
    PlaceRows,
    Pool,
    Rearrange,
    Resize,
    RowWise,
    step_name,
    tile_count,
)


@lru_cache(maxsize=256)
def layer_facts(layer: AnyLayer) -> Mapping[str, float]:
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
    facts = layer_facts(layer)
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


def _place_rows_facts(layer: PlaceRows) -> dict[str, float]:
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
    PlaceRows: _place_rows_facts,
}
