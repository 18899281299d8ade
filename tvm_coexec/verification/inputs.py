"""Random inputs of a network: numbers that a model of their types may be given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..graph import Graph


def random_inputs(graph: Graph, choices: Mapping[str, Sequence[int]], seed: int) -> list[np.ndarray]:
    """Draw one array for each input of a graph, in its order.

    Floats are normal numbers. Whole numbers are of those in ``choices``; inputs that are not there are 0 and 1, which
    every table and every mask has, and bytes are anything, as those of images are.
    """
    rng = np.random.default_rng(seed)
    tensors = [graph.tensors[name] for name in graph.inputs]
    return [_random(rng, tensor.shape, np.dtype(tensor.dtype), choices.get(tensor.name)) for tensor in tensors]


def _random(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, chosen: Sequence[int] | None
) -> np.ndarray:
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if chosen is not None:
        return np.asarray(np.asarray(chosen)[rng.integers(0, len(chosen), shape)], dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return rng.integers(0, 2, shape).astype(dtype)


_NUDGE = 1e-6
"""About the part by which two ways to add up a layer's products differ; float16 is nudged by its neighbour."""


def nudged(arrays: Sequence[np.ndarray], seed: int = 0) -> list[np.ndarray]:
    """Inputs that differ from the given ones as rounding lets layers differ: what a model makes of it is its noise."""
    rng = np.random.default_rng(seed)
    return [_nudged(rng, array) if array.dtype.kind == "f" else array for array in arrays]


def _nudged(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    signs = np.where(rng.integers(0, 2, array.shape), 1, -1)
    moved = (array * (1 + _NUDGE * signs)).astype(array.dtype)
    return np.where(moved == array, np.nextafter(array, (signs * np.inf).astype(array.dtype)), moved)
