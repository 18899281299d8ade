"""Tuning trains on these layers, and comparisons measure them, by their names."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvm_coexec.errors import FileFormatError, InputError
from tvm_coexec.files import read_json
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
    Matrices,
    Opaque,
    PixelLayer,
    Pool,
    Rearrange,
    Resize,
    RowWise,
    has_lines,
    layer_from_json,
)

if TYPE_CHECKING:
    from tvm_coexec.graph import Graph

MODEL_SUFFIXES = (".onnx", ".tflite")
"""Suffixes of files that are models."""

VIT_TOKENS = 197
"""14 × 14 patches of 16 pixels each, and the class token."""
_TEST_SEED, _TRAINING_SEED = 2025, 1
_TEST_COUNT = 40
_M_RANGE, _KN_RANGE, _N_ROWWISE_RANGE = (1, 512), (64, 4096), (32, 4096)
"""Sizes are those of layers of published networks, from one row to a batch of tokens; tests draw by another seed, and
training leaves out what they drew.
"""
_EPILOGUES = (("bias",), ("bias", "relu"), ("bias", "gelu"), ("bias", "residual"), ())
_BIAS_RELU, _SHORTCUT = ("bias", "relu"), ("bias", "residual", "relu")
_CONV_EPILOGUES = (("bias",), _BIAS_RELU, _BIAS_RELU, _SHORTCUT, ("bias", "relu6"), ())
_MAX_TRAINING_FLOPS = 1e9
"""10 ms on a core of 100 GFLOP/s: larger layers would take their time from many smaller ones, and are predicted from
them.
"""
_MAP_EPILOGUES = (("residual", "relu"), ("residual",), ("relu",), ("silu",), ("hard_swish",), ("sigmoid",), ("bias",))


def vit_base() -> list[Linear]:
    """List the distinct linear layers of ViT-Base/16 at 224 pixels (Dosovitskiy et al., 2021, table 1): 197 tokens."""
    width, hidden, patches = 768, 3072, VIT_TOKENS - 1
    return [
        Linear(patches, width, width, ("bias",)),
        Linear(VIT_TOKENS, width, 3 * width, ("bias",)),
        Linear(VIT_TOKENS, width, width, ("bias", "residual")),
        Linear(VIT_TOKENS, width, hidden, ("bias", "gelu")),
        Linear(VIT_TOKENS, hidden, width, ("bias", "residual")),
        Linear(1, width, 1000, ("bias",)),
    ]


def linear_test_layers() -> list[Linear]:
    """List 40 linear layers that no tuning trains on: M 1 to 512, K, N 64 to 4096, log-uniform, half of them ragged."""
    rng = np.random.default_rng(_TEST_SEED)
    return [_random_linear(rng, ("bias",)) for _ in range(_TEST_COUNT)]


def linear_training_layers() -> Iterator[Linear]:
    """Linear layers without end, of the same ranges, none of them among the test layers or ViT-Base's."""
    held_out = {(layer.m, layer.k, layer.n) for layer in (*linear_test_layers(), *vit_base())}
    rng = np.random.default_rng(_TRAINING_SEED)
    while True:
        layer = _random_linear(rng, _EPILOGUES[rng.integers(len(_EPILOGUES))])
        if (layer.m, layer.k, layer.n) not in held_out:
            yield layer


def rowwise_training_layers() -> Iterator[RowWise]:
    """Draw row-wise layers without end: layer normalisation, softmax and element-wise maps of the same row counts."""
    rng = np.random.default_rng(_TRAINING_SEED)
    kinds = (("layer_norm", ()), ("softmax", ()), ("map", ("relu",)), ("map", ("residual",)), ("map", ("bias", "gelu")))
    while True:
        kind, epilogue = kinds[rng.integers(len(kinds))]
        m, n = _log_uniform(rng, *_M_RANGE), _log_uniform(rng, *_N_ROWWISE_RANGE)
        yield RowWise(kind, m, n, epilogue, 1e-5 if kind == "layer_norm" else 0.0)


def attention_test_layers() -> list[Attention]:
    """List attention of ViT-Base/16 at 224 pixels, and of a text encoder of 12 heads of 32 channels and 128 tokens."""
    return [_self_attention(1, 12, VIT_TOKENS, 64), _self_attention(1, 12, 128, 32)]


def attention_training_layers() -> Iterator[Attention | MatMul]:
    """Attention without end, of other sizes than those that comparisons measure; of some its products alone."""
    held_out = attention_test_layers()
    rng = np.random.default_rng(_TRAINING_SEED)
    for number in count():
        heads, head_dim = int(rng.integers(2, 17)), int(rng.choice((32, 64, 96, 128)))
        layer = _self_attention(int(rng.choice((1, 1, 1, 2))), heads, _log_uniform(rng, 16, 512), head_dim)
        if layer not in held_out and layer.flops <= _MAX_TRAINING_FLOPS:
            yield layer if number % 4 else _weighted_values(layer) if number % 8 else _scores(layer)


def _scores(layer: Attention) -> MatMul:
    """Make the products of queries and keys alone, a row of keys for each query of each head."""
    side, (q, k, _v) = layer.queries, layer.offsets
    size = (layer.batch * side, layer.channels[0])
    queries = Matrices(size, (0, q), (side, 0, 1, 0), (0, layer.head_dim, 0, 1))
    keys = Matrices(size, (0, k), (side, 0, 0, 1), (0, layer.head_dim, 1, 0))
    return MatMul(layer.batch, layer.heads, side, layer.head_dim, side, queries, keys, layer.scale)


def _weighted_values(layer: Attention) -> MatMul:
    """Make the products of weights and values alone, heads side by side."""
    side, heads = layer.queries, layer.heads
    weights = Matrices((layer.batch * heads * side, side), (0, 0), (heads * side, side, 1, 0), (0, 0, 0, 1))
    size = (layer.batch * side, layer.channels[2])
    values = Matrices(size, (0, layer.offsets[2]), (side, 0, 1, 0), (0, layer.head_dim, 0, 1))
    return MatMul(layer.batch, heads, side, side, layer.head_dim, weights, values, heads_in_rows=False)


def _self_attention(batch: int, heads: int, tokens: int, head_dim: int) -> Attention:
    width = heads * head_dim
    return Attention(batch, heads, tokens, tokens, head_dim, head_dim**-0.5, (3 * width,) * 3, (0, width, 2 * width))


def resnet18() -> list[Conv2d]:
    """List the distinct convolutions of ResNet-18 at 224 pixels (He et al., 2016, table 1), batch norm folded."""
    layers = [Conv2d(224, 224, 3, 64, (7, 7), (2, 2), (3,) * 4, epilogue=_BIAS_RELU)]
    size, channels = 56, 64
    for width in (64, 128, 256, 512):
        if width != channels:
            layers.append(_square(size, channels, width, 3, 2, _BIAS_RELU))
            layers.append(_square(size, channels, width, 1, 2, ("bias",)))
            size, channels = size // 2, width
        layers += [_square(size, width, width, 3, 1, epilogue) for epilogue in (_BIAS_RELU, _SHORTCUT)]
    return layers


def resnet50() -> list[Conv2d]:
    """List the distinct convolutions of ResNet-50 at 224 pixels, strides in the 3×3 layers, batch norm folded."""
    layers = [Conv2d(224, 224, 3, 64, (7, 7), (2, 2), (3,) * 4, epilogue=_BIAS_RELU)]
    size, channels = 56, 64
    for width in (64, 128, 256, 512):
        stride, out = 1 if width == 64 else 2, 4 * width
        layers += [
            _square(size, channels, width, 1, 1, _BIAS_RELU),
            _square(size, width, width, 3, stride, _BIAS_RELU),
            _square(size, channels, out, 1, stride, ("bias",)),
        ]
        size, channels = size // stride, out
        layers += [
            _square(size, width, out, 1, 1, _SHORTCUT),
            _square(size, out, width, 1, 1, _BIAS_RELU),
            _square(size, width, width, 3, 1, _BIAS_RELU),
        ]
    return list(dict.fromkeys(layers))


def vgg16() -> list[Conv2d]:
    """List the distinct convolutions of VGG-16 at 224 pixels (Simonyan and Zisserman, 2015, table 1)."""
    layers, size, channels = [], 224, 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers.append(_square(size, channels, width, 3, 1, _BIAS_RELU))
            channels = width
        size //= 2
    return list(dict.fromkeys(layers))


def _square(
    size: int, in_channels: int, out_channels: int, kernel: int, stride: int, epilogue: tuple[str, ...]
) -> Conv2d:
    """A square convolution that keeps the image's size, but for its stride."""
    around = (kernel // 2,) * 4
    return Conv2d(size, size, in_channels, out_channels, (kernel,) * 2, (stride,) * 2, around, epilogue=epilogue)


def conv2d_training_layers() -> Iterator[Conv2d]:
    """Convolutions without end, like those of image networks but of no size that a comparison measures.

    Every third one that can be divided by lines is.
    """
    held_out = {_shape(layer) for layer in (*resnet18(), *resnet50(), *vgg16())}
    rng = np.random.default_rng(_TRAINING_SEED)
    for number in count():
        layer = _random_conv2d(rng)
        if _shape(layer) not in held_out and layer.flops <= _MAX_TRAINING_FLOPS:
            yield layer if number % 3 or not has_lines(layer) else replace(layer, axis="lines")


def _shape(layer: Conv2d) -> Conv2d:
    return replace(layer, epilogue=())


def _random_conv2d(rng: np.random.Generator) -> Conv2d:
    """Draw a pointwise, dense, first or depthwise layer; the smaller the image, the more channels, as in networks."""
    kind = rng.choice(("pointwise", "dense", "first", "depthwise"), p=(0.35, 0.4, 0.07, 0.18))
    epilogue = _CONV_EPILOGUES[rng.integers(len(_CONV_EPILOGUES))]
    size = _log_uniform(rng, 5, 128)
    inputs, outputs = _channels(rng, size), _channels(rng, size)
    if kind == "first":
        kernel, stride = (3, 2) if rng.random() < 0.5 else (int(rng.choice((3, 5, 7))), int(rng.integers(1, 3)))
        return _square(_log_uniform(rng, 96, 256), 3, _log_uniform(rng, 16, 96), kernel, stride, epilogue)
    stride = 2 if rng.random() < 0.25 else 1
    if kind == "pointwise":
        return _square(size, inputs, outputs, 1, stride, epilogue)
    kernel = 5 if rng.random() < 0.15 else 3
    layer = _square(size, inputs, outputs, kernel, stride, epilogue)
    return replace(layer, in_channels=outputs, groups=outputs) if kind == "depthwise" else layer


def images_training_layers() -> Iterator[PixelLayer]:
    """Pooling, maps, concatenation, arithmetic and other layers of networks for images, without end."""
    rng = np.random.default_rng(_TRAINING_SEED)
    kinds = ("pool", "global", "map", "concat", "elementwise", "moved", "local_norm")
    while True:
        size = _log_uniform(rng, 5, 128)
        channels = _channels(rng, size)
        kind = rng.choice(kinds, p=(0.2, 0.1, 0.2, 0.15, 0.15, 0.15, 0.05))
        if kind == "pool":
            pool = _random_pool(rng, size, channels)
            yield replace(pool, axis="lines") if has_lines(pool) and rng.random() < 0.3 else pool
        elif kind == "global":
            size = min(size, 28)
            yield Pool("average", size, size, channels, (size, size))
        elif kind == "map":
            epilogue = _MAP_EPILOGUES[rng.integers(len(_MAP_EPILOGUES))]
            yield Pool("max", size, size, channels, (1, 1), epilogue=epilogue)
        elif kind == "concat":
            yield Concat(size, size, tuple(_channels(rng, size) for _ in range(rng.integers(1, 5))))
        elif kind == "elementwise":
            yield _random_arithmetic(rng, (1, size, size, channels))
        elif kind == "moved":
            yield _random_move(rng, (1, size, size, channels))
        else:
            yield LocalNorm(size, size, channels, 5, 1e-4, 0.75, 1.0)


def _random_move(rng: np.random.Generator, image: tuple[int, int, int, int]) -> Rearrange | Resize:
    """Draw a layer that doubles an image, or gives it more channels, some of them, or shuffled ones."""
    _, h, w, channels = image
    kind = str(rng.choice(("resized", "repeated", "padded", "cut", "shuffled")))
    if kind == "resized":
        return Resize(image, 2 * h, 2 * w, (0.5, 0.5), (-0.25, -0.25))
    if kind == "repeated":
        twice = ((1, h, 1, 1), (1, 2, 1, 0), (2, w, 2, 1), (2, 2, 2, 0), (3, channels, 3, 1))
        return Rearrange(image, (1, 2 * h, 2 * w, channels), twice)
    pixels = ((1, h, 1, 1), (2, w, 2, 1))
    if kind == "padded":
        more = 2 * channels
        return Rearrange(image, (1, h, w, more), (*pixels, (3, more, 3, 1)))
    half = max(1, channels // 2)
    if kind == "cut":
        return Rearrange(image, (1, h, w, half), (*pixels, (3, half, 3, 1)), (0, 0, 0, channels - half))
    return Rearrange((1, h, w, 2 * half), (1, h, w, 2 * half), (*pixels, (3, half, 3, 1), (3, 2, 3, half)))


def _random_pool(rng: np.random.Generator, size: int, channels: int) -> Pool:
    """Draw a pooling between two stages of a network, or one beside the convolutions of an inception block."""
    kind = "max" if rng.random() < 0.6 else "average"
    if rng.random() < 0.4:
        return Pool(kind, size, size, channels, (3, 3), (1, 1), (1,) * 4, count_padding=bool(rng.random() < 0.5))
    kernel = int(rng.choice((2, 3)))
    padding = (1,) * 4 if kernel == 3 and rng.random() < 0.5 else (0,) * 4
    return Pool(kind, size, size, channels, (kernel, kernel), (2, 2), padding)


def _random_arithmetic(rng: np.random.Generator, image: tuple[int, int, int, int]) -> Elementwise:
    """Draw arithmetic, mostly a product with one number for each channel, as in squeeze and excitation."""
    if rng.random() < 0.6:
        return Elementwise("multiply", image, (1, 1, 1, image[3]))
    kind = str(rng.choice(Elementwise.KINDS))
    return Elementwise(kind, image, (*image[:3], 1) if rng.random() < 0.3 else image)


def _channels(rng: np.random.Generator, size: int) -> int:
    """Draw numbers of channels, half of them multiples of a tile."""
    channels = _log_uniform(rng, 16, min(2048, max(64, 14000 // size)))
    return channels if rng.random() < 0.5 else max(TILE, round(channels / TILE) * TILE)


def _random_linear(rng: np.random.Generator, epilogue: tuple[str, ...]) -> Linear:
    m, k, n = (_log_uniform(rng, *bounds) for bounds in (_M_RANGE, _KN_RANGE, _KN_RANGE))
    if rng.random() < 0.5:
        k, n = (max(_KN_RANGE[0], round(size / 64) * 64) for size in (k, n))
    return Linear(m, k, n, epilogue)


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return min(high, max(low, round(math.exp(rng.uniform(math.log(low), math.log(high))))))


NAMED: dict[str, Callable[[], Sequence[AnyLayer]]] = {
    "linear": linear_test_layers,
    "vit-base": vit_base,
    "attention": attention_test_layers,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg16": vgg16,
}


def layers_named(name: str | os.PathLike[str]) -> list[AnyLayer]:
    """Read the layers of a named set, of an ONNX or TFLite model, or of a JSON file with a list of layers.

    An entry of the list is such as ``{"op": "linear", "m": 1, "k": 64, "n": 64}``. Of a model come the layers that can
    be tuned, each once.

    Raises
    ------
    InputError
        There is neither such a set nor such a file.
    FileFormatError
        The file holds something else; the entry is named.
    ModelError
        The model cannot be read.
    """
    if isinstance(name, str) and name in NAMED:
        return list(NAMED[name]())
    path = Path(name)
    if not path.is_file():
        raise InputError(
            f"no layers named {os.fspath(name)!r}: give a JSON file, a model as ONNX or TFLite file, or one of "
            f"{', '.join(NAMED)}"
        )
    if path.suffix not in MODEL_SUFFIXES:
        return _layers_in(path)
    from tvm_coexec.frontends import to_graph

    layers = layers_of(to_graph(path))
    if not layers:
        raise InputError(f"no layer of {path} can be tuned: all of them are computed by the CPU alone")
    return layers


def layers_of(graph: Graph) -> list[AnyLayer]:
    """The layers of a model that can be tuned, each once."""
    layers = dict.fromkeys(node.layer for node in graph.nodes)
    return [layer for layer in layers if not isinstance(layer, Opaque)]


def _layers_in(path: Path) -> list[AnyLayer]:
    """Read the list of layers in a JSON file."""
    try:
        entries = read_json(path)
    except OSError as error:
        raise FileFormatError(
            f"cannot read {path} ({error.strerror}); name a JSON file with a list of layers"
        ) from None
    except ValueError as error:
        raise FileFormatError(f"{path} is not JSON ({error}); it must hold a list of layers") from None
    if not isinstance(entries, list) or not entries:
        raise FileFormatError(
            f'{path} must hold a list of layers such as [{{"op": "linear", "m": 1, "k": 64, "n": 64}}]'
        )
    layers = []
    for index, entry in enumerate(entries):
        try:
            layers.append(layer_from_json(entry))
        except (ValueError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{path}, entry {index}: {error}") from None
    return layers
