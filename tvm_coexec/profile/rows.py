"""Layers, variants and samples become columns of a profile's database here, and are read from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tvm_coexec.errors import FileFormatError, in_one_line
from tvm_coexec.layers import AnyLayer, Variant, layer_from_json, layer_to_json

from .records import Candidate, Sample


def damaged(path: Path, error: object) -> FileFormatError:
    """The error for a file of a profile that cannot be read."""
    return FileFormatError(f"{path} is damaged ({in_one_line(error)}); restore it, or tune into another directory")


def layer_text(layer: AnyLayer) -> str:
    """A layer as a column holds it."""
    return json.dumps(layer_to_json(layer))


def variant_text(variant: Variant) -> str:
    """A variant as a column holds it."""
    return json.dumps(variant.to_json())


def half_key(sample: Sample) -> tuple[str, str, str, int, str | None, int]:
    """What tells a sample from those of other halves."""
    other = None if sample.other_variant is None else variant_text(sample.other_variant)
    layer, variant = layer_text(sample.layer), variant_text(sample.variant)
    return layer, sample.side, variant, sample.units, other, sample.other_units


def candidate_key(candidate: Candidate) -> tuple[str, str, str]:
    """What tells a candidate from others."""
    return layer_text(candidate.layer), variant_text(candidate.cpu), variant_text(candidate.gpu)


def kernel_of_row(path: Path, layer: str, variant: str) -> tuple[AnyLayer, Variant]:
    """The layer and the variant that two columns hold."""
    try:
        return layer_from_json(json.loads(layer)), Variant.from_json(json.loads(variant))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, f"the sample of layer {layer} cannot be read: {error}") from None


def sample_of_row(path: Path, row: tuple[Any, ...]) -> Sample:
    """The sample that a row holds."""
    layer, side, variant, units, other_units, latency_us, other, canary_us, run = row
    computed, by = kernel_of_row(path, layer, variant)
    try:
        counts = int(units), int(other_units)
        times_us = tuple(float(time_us) for time_us in json.loads(latency_us))
        canary_us = float(canary_us)
    except (ValueError, TypeError) as error:
        raise damaged(path, f"the units or times of layer {layer} cannot be read: {error}") from None
    other_by = None if other is None else kernel_of_row(path, layer, other)[1]
    return Sample(computed, side, by, *counts, times_us, other_by, canary_us, run)
