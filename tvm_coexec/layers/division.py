"""A layer is divided along partition axes: its channels or rows, and an image's lines as well."""

from __future__ import annotations

import dataclasses

from .base import has_lines
from .kinds import AnyLayer


def by_lines(layer: AnyLayer) -> AnyLayer | None:
    """Divide the same layer by lines; None where it cannot be."""
    has_axis = any(field.name == "axis" for field in dataclasses.fields(layer))
    return dataclasses.replace(layer, axis="lines") if has_axis and has_lines(layer) else None  # type: ignore


def along_partition_axes(layer: AnyLayer) -> tuple[AnyLayer, ...]:
    """The layer along each of its partition axes: itself and, where it can be, divided by lines."""
    lines = by_lines(layer)
    return (layer,) if lines in (None, layer) else (layer, lines)
