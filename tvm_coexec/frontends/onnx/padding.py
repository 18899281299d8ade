"""The padding that ONNX's nodes ask for by a rule or by the size of their result, and the windows that count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnx import NodeProto, helper

from tvm_coexec.frontends.windows import same_padding

from .values import attributes, rounds_up

_WINDOWED = ("AveragePool", "Conv", "MaxPool")


def with_explicit_padding(node: NodeProto, shapes: Callable[[str], tuple[int, ...]]) -> NodeProto:
    """The node with the padding written into it that ``auto_pad`` or, of a ConvTranspose, ``output_shape`` asks for."""
    values = attributes(node)
    has_rule = values.get("auto_pad", "NOTSET") != "NOTSET"
    if node.op_type not in (*_WINDOWED, "ConvTranspose") or not (has_rule or "output_shape" in values):
        return node
    sizes = shapes(node.input[0])[2:]
    kernel = tuple(values.get("kernel_shape") or shapes(node.input[1])[2:])
    pads = (_output_padding if node.op_type == "ConvTranspose" else window_padding)(values, sizes, kernel)
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    dropped = ("auto_pad", "output_shape", "pads")
    copy.attribute.extend(attribute for attribute in node.attribute if attribute.name not in dropped)
    copy.attribute.append(helper.make_attribute("pads", pads))
    return copy


def without_empty_windows(node: NodeProto, shape: tuple[int, ...], pooled: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what is pooled, less the windows that begin behind the last element: ONNX's inference counts them.

    Its operators leave them out, as ONNX Runtime and torch do.
    """
    rule, sizes = attributes(node).get("auto_pad", "NOTSET"), shape[2:]
    if not rounds_up(node):
        return pooled
    begins = attributes(node).get("pads", [0] * len(sizes))
    strides = attributes(node).get("strides", [1] * len(sizes))
    if rule.startswith("SAME"):
        return (*pooled[:2], *(-(-size // step) for size, step in zip(sizes, strides, strict=False)))
    most = ((size + before - 1) // step + 1 for size, before, step in zip(sizes, begins, strides, strict=False))
    return (*pooled[:2], *(min(count, each) for count, each in zip(pooled[2:], most, strict=True)))


def window_padding(values: Mapping[str, Any], sizes: tuple[int, ...], kernel: tuple[int, ...]) -> list[int]:
    """Give the padding of a convolution or pooling: before each axis, then behind each."""
    ones = [1] * len(kernel)
    rule = values.get("auto_pad", "NOTSET")
    if rule == "NOTSET":
        return [int(pad) for pad in values.get("pads", [0] * 2 * len(kernel))]
    totals = [0] * len(kernel)
    if rule != "VALID":
        strides, dilations = values.get("strides", ones), values.get("dilations", ones)
        totals = same_padding(sizes, kernel, strides, dilations)
    return _divided(totals, larger_first=rule == "SAME_LOWER")


def _output_padding(values: Mapping[str, Any], sizes: tuple[int, ...], kernel: tuple[int, ...]) -> list[int]:
    """Padding of a ConvTranspose, so that its result has the size that it should have."""
    ones, rule = [1] * len(kernel), values.get("auto_pad", "NOTSET")
    strides = values.get("strides", ones)
    if rule == "VALID":
        return [0] * 2 * len(kernel)
    wanted = values.get("output_shape") or [size * stride for size, stride in zip(sizes, strides, strict=True)]
    windows = zip(
        wanted[-len(kernel) :],
        sizes,
        kernel,
        strides,
        values.get("dilations", ones),
        values.get("output_padding", [0] * len(kernel)),
        strict=True,
    )
    totals = [s * (size - 1) + extra + (k - 1) * d + 1 - want for want, size, k, s, d, extra in windows]
    if rule != "NOTSET":
        totals = [max(total, 0) for total in totals]  # windows smaller than their stride leave the result shorter
    return _divided(totals, larger_first=rule in ("SAME_LOWER", "NOTSET"))


def _divided(totals: list[int], larger_first: bool) -> list[int]:
    smaller = [total // 2 for total in totals]
    larger = [total - half for total, half in zip(totals, smaller, strict=True)]
    return [*larger, *smaller] if larger_first else [*smaller, *larger]
