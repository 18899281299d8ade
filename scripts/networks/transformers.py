"""Transformer encoders are written as exports of PyTorch models write them."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto

from .builder import NetworkBuilder


def vit_b16(size: int = 224, width: float = 1.0, classes: int = 1000, depth: int = 12) -> onnx.ModelProto:
    """Make the network of Dosovitskiy et al., 2021, table 1: pre-normalised blocks, classified by the class token."""
    b = NetworkBuilder.for_images("vit_b16", size, width)
    heads, patch = b.wide(12), 16
    hidden, patches = 64 * heads, (size // patch) ** 2
    pixels = b.conv("input", hidden, patch, stride=patch, bias=True)
    rows = b.add("Reshape", [pixels, b.integers(1, hidden, patches)])
    x = b.add("Concat", [_embedding(b, 1, hidden), b.add("Transpose", [rows], perm=(0, 2, 1))], hidden, axis=1)
    x = b.add("Add", [x, _embedding(b, patches + 1, hidden)])
    for _ in range(depth):
        x = b.add("Add", [x, _joint_attention(b, _layer_norm(b, x, 1e-6), patches + 1, heads)])
        x = b.add("Add", [x, _mlp(b, _layer_norm(b, x, 1e-6))])
    token = b.add("Gather", [_layer_norm(b, x, 1e-6), b.integer(0)], axis=1)
    return b.model(b.linear(token, hidden, classes))


def minilm(size: int = 128, width: float = 1.0, depth: int = 6, words: int = 30522) -> onnx.ModelProto:
    """Make the encoder of Wang et al., 2020, 6 layers of 384 channels, from token numbers to one vector a token."""
    b = NetworkBuilder("minilm", (1, size), width, TensorProto.INT64)
    heads = b.wide(12)
    hidden = 32 * heads
    x = b.add("Gather", [b.constant(b.normal((words, hidden), 1.0)), "input"], hidden, axis=0)
    x = _layer_norm(b, b.add("Add", [x, _embedding(b, size, hidden)]), 1e-12)
    for _ in range(depth):
        x = _layer_norm(b, b.add("Add", [_separate_attention(b, x, size, heads), x]), 1e-12)
        x = _layer_norm(b, b.add("Add", [_mlp(b, x), x]), 1e-12)
    return b.model(x)


def _embedding(b: NetworkBuilder, rows: int, hidden: int) -> str:
    name = b.constant(b.normal((1, rows, hidden), 0.5))
    b.channels[name] = hidden
    return name


def _linear(b: NetworkBuilder, x: str, channels: int) -> str:
    """The product and the sum by which an export writes a linear layer on three axes."""
    weights = b.normal((b.channels[x], channels), b.channels[x] ** -0.5)
    product = b.add("MatMul", [x, b.constant(weights)], channels)
    return b.add("Add", [product, b.constant(b.normal((channels,), 0.1))])


def _layer_norm(b: NetworkBuilder, x: str, epsilon: float) -> str:
    channels = b.channels[x]
    vectors = [b.random.uniform(0.8, 1.2, channels), b.random.uniform(-0.1, 0.1, channels)]
    return b.add("LayerNormalization", [x, *map(b.constant, vectors)], axis=-1, epsilon=epsilon)


def _mlp(b: NetworkBuilder, x: str) -> str:
    """Add two linear layers with the exact GELU between them."""
    channels = b.channels[x]
    hidden = _linear(b, x, 4 * channels)
    error = b.add("Erf", [b.add("Div", [hidden, b.constant(np.array(math.sqrt(2)))])])
    doubled = b.add("Mul", [hidden, b.add("Add", [error, b.constant(np.array(1.0))])])
    return _linear(b, b.add("Mul", [doubled, b.constant(np.array(0.5))]), channels)


def _joint_attention(b: NetworkBuilder, x: str, tokens: int, heads: int) -> str:
    """Queries, keys and values by one linear layer, as vision models have it."""
    channels = b.channels[x]
    joint = b.add("Reshape", [_linear(b, x, 3 * channels), b.integers(1, tokens, 3, heads, channels // heads)])
    joint = b.add("Transpose", [joint], perm=(2, 0, 3, 1, 4))
    query, key, value = (b.add("Gather", [joint, b.integer(part)], axis=0) for part in range(3))
    return _attended(b, query, b.add("Transpose", [key], perm=(0, 1, 3, 2)), value, tokens, heads, channels)


def _separate_attention(b: NetworkBuilder, x: str, tokens: int, heads: int) -> str:
    """A linear layer each for queries, keys and values, as text models have it."""
    channels = b.channels[x]
    shape = b.integers(1, tokens, heads, channels // heads)
    parts = [b.add("Reshape", [_linear(b, x, channels), shape]) for _ in range(3)]
    orders = ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
    query, key, value = (b.add("Transpose", [part], perm=order) for part, order in zip(parts, orders, strict=True))
    return _attended(b, query, key, value, tokens, heads, channels)


def _attended(b: NetworkBuilder, query: str, key: str, value: str, tokens: int, heads: int, channels: int) -> str:
    """Softmax of the scaled products, times the values, heads joined again; ``key`` is transposed."""
    scale = b.constant(np.array(math.sqrt(channels // heads)))
    weights = b.add("Softmax", [b.add("Div", [b.add("MatMul", [query, key]), scale])], axis=-1)
    merged = b.add("Transpose", [b.add("MatMul", [weights, value])], perm=(0, 2, 1, 3))
    return _linear(b, b.add("Reshape", [merged, b.integers(1, tokens, channels)], channels), channels)
