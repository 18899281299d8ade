"""ONNX nodes that TVM's importer does not pass on as they are: what they mean is read from the node itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import NodeProto

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.relax import images as relax_images
from tvm_coexec.frontends.relax.steps import limited
from tvm_coexec.frontends.trace import Source

from .steps import STEPS
from .values import attributes

_PAIRS = {"Max": "maximum", "Min": "minimum", "Sum": "add"}
"""The operations of two operands, of which the nodes may have more."""

_NORMS: dict[str, tuple[str, dict[str, float]]] = {
    "InstanceNormalization": ("instance_norm", {"epsilon": 1e-5}),
    "LRN": ("local_norm", {"alpha": 1e-4, "beta": 0.75, "bias": 1.0, "size": 1}),
}
"""The operations of normalisations, and their attributes with the defaults; the size of LRN is always given."""

Known = tuple[str, list[str], dict[str, Any]]
"""An operation, the names of its inputs, and its attributes."""


def known_operation(node: NodeProto, source: Source, numbers: Mapping[str, np.ndarray]) -> Known | None:
    """The operation that a node is, if Relax would spread it over several or hide it in compiled code.

    Raises
    ------
    ModelError
        If no layer can compute it.
    """
    values, inputs = attributes(node), list(node.input)
    if node.op_type == "Clip" or node.op_type in STEPS:
        return _step(node.op_type, values, inputs, numbers, source)
    if node.op_type == "Pad":
        return "pad", inputs[:1], _padding(values, inputs, numbers, source)
    if node.op_type in _NORMS:
        op, defaults = _NORMS[node.op_type]
        return op, inputs, {name: values.get(name, default) for name, default in defaults.items()}
    cut = cut_range(node, numbers)
    if cut is not None:
        return "slice", inputs[:1], cut
    if node.op_type in _PAIRS and len(inputs) == 2:
        return _PAIRS[node.op_type], inputs, {}
    return None


def _step(
    kind: str, values: Mapping[str, Any], inputs: list[str], numbers: Mapping[str, np.ndarray], source: Source
) -> Known:
    """Convert a function of one value."""
    if kind in STEPS:
        op, names = STEPS[kind]
        given = tuple(values.get(name, default) for name, default in names)
        return op, inputs, {"numbers": given} if given else {}
    low = _number(inputs[1:2], numbers, values.get("min", -math.inf), source)
    high = _number(inputs[2:3], numbers, values.get("max", math.inf), source)
    op, limits = limited(min(low, high), high)  # the upper bound is the last word
    return op, inputs[:1], limits


def cut_range(node: NodeProto, numbers: Mapping[str, np.ndarray]) -> dict[str, int] | None:
    """What a Gather of one place, or a Slice of one axis without steps, cuts out: ``axis`` and ``begin``, as written.

    None for other nodes.
    """
    if node.op_type not in ("Gather", "Slice"):
        return None
    operands = [numbers.get(name) for name in node.input[1:]]
    if not operands or any(array is None or array.size != 1 for array in operands):
        return None
    values = [int(array.reshape(())) for array in operands if array is not None]
    if node.op_type == "Gather":
        return {"axis": attributes(node).get("axis", 0), "begin": values[0]}
    if node.op_type == "Slice" and len(values) >= 2 and values[3:] in ([], [1]):
        return {"axis": values[2] if len(values) > 2 else 0, "begin": values[0]}
    return None


def _number(names: list[str], numbers: Mapping[str, np.ndarray], default: float, source: Source) -> float:
    """Read the value of an optional operand."""
    if not names or not names[0]:
        return default
    if names[0] not in numbers:
        raise ModelError(f"{source} has the operand {names[0]!r}, which is no constant; make it one")
    return float(numbers[names[0]].reshape(()))


def _padding(
    values: Mapping[str, Any], inputs: list[str], numbers: Mapping[str, np.ndarray], source: Source
) -> dict[str, Any]:
    mode = values.get("mode", "constant")
    value = _number(inputs[2:3], numbers, values.get("value", 0.0), source)
    if mode != "constant":
        raise ModelError(f"{source} pads by {mode}; supported is padding with a number")
    if len(inputs) > 1 and inputs[1] not in numbers:
        raise ModelError(f"{source} has the operand {inputs[1]!r}, which is no constant; make it one")
    pads = [int(number) for number in (numbers[inputs[1]] if len(inputs) > 1 else values["pads"])]
    half = len(pads) // 2
    before, after = pads[:half], pads[half:]
    if len(inputs) > 3 and inputs[3]:
        axes = [int(axis) % 4 for axis in numbers[inputs[3]]]
        before, after = (
            [dict(zip(axes, side, strict=True)).get(axis, 0) for axis in range(4)] for side in (before, after)
        )
    return relax_images.pad(before, after, value)
