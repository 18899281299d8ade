"""Layers by name: what tuning trains on, and what comparisons measure."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from .errors import FileFormatError, InputError
from .layers import Linear, RowWise, layer_from_json

VIT_TOKENS = 197
_TEST_SEED, _TRAINING_SEED = 2025, 1
_TEST_COUNT = 40
_M_RANGE, _KN_RANGE, _N_ROWWISE_RANGE = (1, 512), (64, 4096), (32, 4096)
_EXAMPLE = {"op": "linear", "m": 1, "k": 64, "n": 64}
_EPILOGUES = (("bias",), ("bias", "relu"), ("bias", "gelu"), ("bias", "residual"), ())


def vit_base() -> list[Linear]:
    """The distinct linear layers of ViT-Base/16 at 224 pixels (Dosovitskiy et al., 2021, table 1): 197 tokens."""
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
    """40 linear layers that no tuning trains on: M 1 to 512, K and N 64 to 4096, log-uniform, half of them ragged."""
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
    """Row-wise layers without end: layer normalisation, softmax and element-wise maps of the same row counts."""
    rng = np.random.default_rng(_TRAINING_SEED)
    kinds = (("layer_norm", ()), ("softmax", ()), ("map", ("relu",)), ("map", ("residual",)), ("map", ("bias", "gelu")))
    while True:
        kind, epilogue = kinds[rng.integers(len(kinds))]
        m, n = _log_uniform(rng, *_M_RANGE), _log_uniform(rng, *_N_ROWWISE_RANGE)
        yield RowWise(kind, m, n, epilogue, 1e-5 if kind == "layer_norm" else 0.0)


def _random_linear(rng: np.random.Generator, epilogue: tuple[str, ...]) -> Linear:
    m, k, n = (_log_uniform(rng, *bounds) for bounds in (_M_RANGE, _KN_RANGE, _KN_RANGE))
    if rng.random() < 0.5:
        k, n = (max(_KN_RANGE[0], round(size / 64) * 64) for size in (k, n))
    return Linear(m, k, n, epilogue)


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return min(high, max(low, round(math.exp(rng.uniform(math.log(low), math.log(high))))))


NAMED: dict[str, Callable[[], list[Linear]]] = {"linear": linear_test_layers, "vit-base": vit_base}


def layers_named(name: str | os.PathLike[str]) -> list[Linear | RowWise]:
    """Layers of a named set, or of a JSON file with a list such as ``[{"op": "linear", "m": 1, "k": 64, "n": 64}]``.

    Raises
    ------
    InputError
        There is neither such a set nor such a file.
    FileFormatError
        The file holds something else; the entry is named.
    """
    if isinstance(name, str) and name in NAMED:
        return list(NAMED[name]())
    path = Path(name)
    if not path.is_file():
        raise InputError(f"no layers named {os.fspath(name)!r}: give a JSON file, or one of {', '.join(NAMED)}")
    try:
        entries = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} is not JSON ({error}); it must hold a list of layers") from None
    if not isinstance(entries, list) or not entries:
        raise FileFormatError(
            f'{path} must hold a list of layers such as [{{"op": "linear", "m": 1, "k": 64, "n": 64}}]'
        )
    layers = []
    for place, entry in enumerate(entries):
        try:
            layers.append(layer_from_json(entry))
        except (ValueError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{path}, entry {place}: {error}") from None
    return layers
