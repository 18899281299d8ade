"""The classes of layers by the name of what they do, and layers to and from plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from .base import Layer

_LAYERS: dict[str, Any] = {}

Class = TypeVar("Class", bound=type)


def register(cls: Class) -> Class:
    """Make a class of layers known, to all stages, under its ``op``: all that a new family of operators needs.

    The class says what such a layer is and, in :meth:`.Layer.evaluate`, what it computes; its ``kernels`` name the
    module that knows how. Everything else asks it.
    """
    op = cls.op  # type: ignore[attr-defined]
    if op in _LAYERS:
        raise ValueError(f"there are layers {op!r} already, of {_LAYERS[op].__name__}")
    _LAYERS[op] = cls
    return cls


def known_operators() -> tuple[str, ...]:
    """The names of all operators that there are layers of."""
    return tuple(_LAYERS)


def layer_to_json(layer: Layer) -> dict[str, Any]:
    """Describe a layer by plain values, ``op`` first; what most layers have in common is left out."""
    fields = dataclasses.asdict(layer)  # type: ignore[call-overload]
    for name, usual in (("axis", "channels"), ("dtype", "float32")):
        if fields.get(name) == usual:
            del fields[name]
    return {
        "op": layer.op,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()},
    }


def layer_from_json(fields: Mapping[str, Any]) -> Any:
    """Inverse of :func:`layer_to_json`; fields that have a default may be left out."""
    rest = {key: value for key, value in fields.items() if key != "op"}
    cls = _LAYERS.get(fields.get("op", ""))
    if cls is None:
        raise ValueError(f"unknown layer op {fields.get('op')!r}; known: {', '.join(known_operators())}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in rest.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"cannot read layer {dict(fields)}: {error}") from None
