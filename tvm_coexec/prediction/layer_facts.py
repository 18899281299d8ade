"""What the predictors see of a layer, whichever kernels compute it: sizes, operations, bytes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from tvm_coexec.layers import AnyLayer, step_name


@lru_cache(maxsize=256)
def layer_facts(layer: AnyLayer) -> Mapping[str, float]:
    """What the layer says of itself, with what a unit of it takes."""
    facts = layer.facts()
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
