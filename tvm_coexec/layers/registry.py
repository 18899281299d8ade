"""Every layer by its name: to and from plain values, and the constants that a layer has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .attention import Attention, PlaceRows
from .base import Layer, has_lines
from .dense import Conv2d, Linear
from .images import Concat, Elementwise, LocalNorm, Pool
from .matmul import MatMul
from .opaque import Opaque, constant_name
from .rearrange import Rearrange
from .resize import Resize
from .rowwise import RowWise
from .steps import channel_constants

ImageLayer = Conv2d | Pool | LocalNorm | Concat | Elementwise | Rearrange | Resize
"""Layers that know of halos; of the others Opaque does too, and all but it see the pixels of an image as rows."""

AnyLayer = Linear | RowWise | ImageLayer | Attention | MatMul | PlaceRows | Opaque

_CLASSES = (
    Linear,
    RowWise,
    Conv2d,
    Pool,
    LocalNorm,
    Concat,
    Elementwise,
    Rearrange,
    Resize,
    Attention,
    MatMul,
    PlaceRows,
    Opaque,
)
_LAYERS: dict[str, Any] = {cls.op: cls for cls in _CLASSES}


def layer_to_json(layer: Layer) -> dict[str, Any]:
    """Describe a layer by plain values, ``op`` first; the ``axis`` is left out where it is the channels'."""
    fields = dataclasses.asdict(layer)  # type: ignore[call-overload]
    if fields.get("axis") == "channels":
        del fields["axis"]
    return {
        "op": layer.op,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()},
    }


def layer_from_json(fields: Mapping[str, Any]) -> AnyLayer:
    """Inverse of :func:`layer_to_json`; fields that have a default may be left out."""
    rest = {key: value for key, value in fields.items() if key != "op"}
    cls = _LAYERS.get(fields.get("op", ""))
    if cls is None:
        raise ValueError(f"unknown layer op {fields.get('op')!r}; known: {', '.join(_LAYERS)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in rest.items()}
    try:
        layer: AnyLayer = cls(**values)
    except TypeError as error:
        raise ValueError(f"cannot read layer {dict(fields)}: {error}") from None
    return layer


def by_lines(layer: AnyLayer) -> Conv2d | Pool | Elementwise | None:
    """The same layer, divided by lines; None where it cannot be."""
    if isinstance(layer, Conv2d | Pool | Elementwise) and has_lines(layer):
        return dataclasses.replace(layer, axis="lines")
    return None


def ways_to_divide(layer: AnyLayer) -> tuple[AnyLayer, ...]:
    """The layer itself and, where it can be, divided by lines."""
    lines = by_lines(layer)
    return (layer,) if lines in (None, layer) else (layer, lines)


def reads_locally(layer: AnyLayer, role: str) -> bool:
    """Whether a unit needs only the same unit of the activation with a role, wherever that is divided as the layer is.

    An epilogue adds a residual element by element, rows of a row-wise operator do not depend on each other, and a
    kernel of one line reads the line that it writes.
    """
    if isinstance(layer, Elementwise):
        size = layer.second if role == "input1" else layer.first
        return role == "residual" or layer.is_whole_along(layer.axis, size)
    if isinstance(layer, Conv2d | Pool) and layer.axis == "lines":
        own_line = layer.kernel[0] == layer.stride[0] == 1 and layer.padding[::2] == (0, 0)
        return role == "residual" or own_line
    return role == "residual" or layer.channel_local or isinstance(layer, RowWise)


def parameter_shapes(layer: AnyLayer) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's constants, as a model gives them: packed by nobody yet."""
    shapes: dict[str, tuple[int, ...]] = {}
    if isinstance(layer, Linear):
        shapes["weights"] = (layer.k, layer.n)
    elif isinstance(layer, Conv2d):
        shapes["weights"] = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel)
    elif isinstance(layer, RowWise) and layer.kind == "layer_norm":
        shapes |= {"gamma": (layer.n,), "beta": (layer.n,)}
    elif isinstance(layer, Opaque):
        shapes |= {constant_name(index): shape for index, (shape, _) in enumerate(layer.constants)}
    elif isinstance(layer, Attention) and layer.mask == "constant":
        shapes["mask"] = (layer.mask_rows, layer.keys)
    elif isinstance(layer, PlaceRows) and layer.has_summand:
        shapes["summand"] = (layer.out_rows, layer.channels)
    return shapes | dict.fromkeys(channel_constants(layer.epilogue), (layer.out_channels,))


def parameter_dtype(layer: AnyLayer, name: str) -> str:
    """Type of one of a layer's constants."""
    if isinstance(layer, Opaque):
        return {constant_name(index): dtype for index, (_, dtype) in enumerate(layer.constants)}[name]
    return "float32"
