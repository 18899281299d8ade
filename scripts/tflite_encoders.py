"""Layers of transformer encoders as TFLite operators that XNNPACK takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tflite_writer import Writer

from tvm_coexec.layers import Attention, PlaceRows, RowWise


def rowwise(writer: Writer, layer: RowWise, source: int, params: Mapping[str, np.ndarray]) -> int:
    """Layer normalisation, softmax, or the source itself for a map, which is but an epilogue."""
    if layer.kind == "softmax":
        return writer.add("SOFTMAX", [source], writer.shape(source), "Softmax", beta=1.0)
    return _layer_norm(writer, layer, source, params) if layer.kind == "layer_norm" else source


def _layer_norm(writer: Writer, layer: RowWise, source: int, params: Mapping[str, np.ndarray]) -> int:
    shape = writer.shape(source)
    one = (*shape[:-1], 1)
    last = writer.integers([len(shape) - 1])
    mean = writer.add("MEAN", [source, last], one, "Reducer", keepDims=True)
    squares = writer.add("SQUARED_DIFFERENCE", [source, mean], shape, "SquaredDifference")
    variance = writer.add("MEAN", [squares, last], one, "Reducer", keepDims=True)
    epsilon = writer.constant(np.array([layer.epsilon], np.float32))
    factor = writer.add("RSQRT", [writer.add("ADD", [variance, epsilon], one, "Add")], one)
    centred = writer.add("SUB", [source, mean], shape, "Sub")
    normal = writer.add("MUL", [centred, factor], shape, "Mul")
    scaled = writer.add("MUL", [normal, writer.constant(params["gamma"])], shape, "Mul")
    return writer.add("ADD", [scaled, writer.constant(params["beta"])], shape, "Add")


def attention(writer: Writer, layer: Attention, operands: Sequence[int], mask: int | None) -> int:
    """Attention of all heads at once; ``operands`` are rows of queries, which are scaled already, keys and values."""
    rows = (layer.queries, layer.keys, layer.keys)
    heads = [_heads(writer, layer, operand, n) for operand, n in zip(operands, rows, strict=True)]
    shape = (layer.batch, layer.heads, layer.queries, layer.keys)
    scores = writer.add("BATCH_MATMUL", heads[:2], shape, "BatchMatMul", adjY=True)
    if mask is not None:
        summand = writer.reshaped(mask, (*layer.mask_sizes, layer.keys))
        scores = writer.add("ADD", [scores, summand], shape, "Add")
    weights = writer.add("SOFTMAX", [scores], shape, "Softmax", beta=1.0)
    shape = (layer.batch, layer.heads, layer.queries, layer.head_dim)
    result = writer.add("BATCH_MATMUL", [weights, heads[2]], shape, "BatchMatMul")
    return writer.reshaped(writer.transposed(result, (0, 2, 1, 3)), layer.output_size)


def _heads(writer: Writer, layer: Attention, operand: int, rows: int) -> int:
    split = writer.reshaped(operand, (layer.batch, rows, layer.heads, layer.head_dim))
    return writer.transposed(split, (0, 2, 1, 3))


def place(writer: Writer, layer: PlaceRows, source: int, params: Mapping[str, np.ndarray]) -> int:
    """Move rows by cutting some off and putting zeros around those that stay."""
    first = max(-layer.shift, 0)
    before = max(layer.shift, 0)
    kept = min(layer.in_rows - first, layer.out_rows - before)
    after = layer.out_rows - before - kept
    rows = writer.reshaped(source, _items(layer, layer.in_rows))
    rows = writer.sliced(rows, len(writer.shape(rows)) - 2, first, kept)
    if before or after:
        around = np.zeros((len(writer.shape(rows)), 2), np.int32)
        around[-2] = before, after
        rows = writer.add("PAD", [rows, writer.integers(around)], _items(layer, layer.out_rows), "Pad")
    if layer.has_summand:
        rows = writer.add("ADD", [rows, writer.constant(params["summand"])], writer.shape(rows), "Add")
    return writer.reshaped(rows, layer.output_size)


def _items(layer: PlaceRows, rows: int) -> tuple[int, ...]:
    """Shape of the rows of all items: of one item alone it has two axes, so that nothing is reshaped."""
    return (rows, layer.channels) if layer.batch == 1 else (layer.batch, rows, layer.channels)
