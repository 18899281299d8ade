"""Graphs of files that were read before: building such a file again needs neither TVM nor the package of its format."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import pickle
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from tvm_coexec import graph as graphs
from tvm_coexec import layers, schedules
from tvm_coexec.cache import Cache, digest_of_sources, user_cache
from tvm_coexec.graph import Graph

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_Result = TypeVar("_Result")

_MOST_KEPT_BYTES = 1 << 29
_MOST_MODEL_BYTES = 1 << 26
"""Larger models take longer to compute than to read, and their weights' place on the disk would be large, too."""
_READERS = ("apache-tvm", "apache-tvm-ffi", "numpy", "onnx", "tflite")
_EXTERNAL = b"location"
"""A word that every ONNX file holds whose weights lie in other files, of which its own bytes say nothing."""


@dataclass(frozen=True)
class Kept:
    """What was read of a file: its graph, and what the user was told."""

    graph: Graph
    warnings: tuple[str, ...]

    def told(self) -> Graph:
        """The graph, once the user is told what there is to tell."""
        for message in self.warnings:
            warnings.warn(message, stacklevel=2)
        return self.graph


def key_of(path: Path, shapes: Mapping[str, Sequence[int]], values: Mapping[str, ArrayLike]) -> str | None:
    """Names what is read of a file by its content and all that reads it; None if it is not to be kept."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_MODEL_BYTES:
            return None
        content = path.read_bytes()
        asked = sorted((name, tuple(shape)) for name, shape in shapes.items())
        fixed = sorted((name, *_digest(np.asarray(value))) for name, value in values.items())
    except (OSError, RuntimeError, TypeError, ValueError):  # what is no shape or array is told by those who read
        return None
    if path.suffix != ".tflite" and _EXTERNAL in content:
        return None
    return json.dumps([hashlib.sha256(content).hexdigest(), path.suffix, repr(asked), repr(fixed), _reader_key()])


def _digest(array: np.ndarray) -> tuple[str, tuple[int, ...], str]:
    return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()


def kept_graph(key: str) -> Kept | None:
    """What was read before."""
    content = _kept_graphs().get(key)
    # it may be trusted as the kernels that are kept beside it, which are code
    return None if content is None else cast("Kept", pickle.loads(content))


def heard_of(work: Callable[[], _Result]) -> tuple[_Result, list[str]]:
    """What some work comes to, and what it would have warned the user of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")  # whoever reads it next may want to hear what this process ignores
        result = work()
    return result, [str(one.message) for one in told if one.category is UserWarning]


def form(read: Callable[[], Graph], heard: Iterable[str], key: str | None, key_now: Callable[[], str | None]) -> Kept:
    """Form a graph, and keep it, with what was ``heard`` before, if ``key`` still names what the file holds."""
    graph, more = heard_of(read)
    kept = Kept(graph, tuple(dict.fromkeys([*heard, *more])))
    if key is not None and key == key_now():
        _kept_graphs().put(key, pickle.dumps(kept, protocol=5))
    return kept


def _kept_graphs() -> Cache:
    return user_cache("graphs", _MOST_KEPT_BYTES)


@functools.cache
def _reader_key() -> str:
    """Changes with what reads files: the packages, every line of the front ends, of graphs and of layers."""
    versions = []
    for name in _READERS:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    folders = (str(Path(__file__).parent), *graphs.__path__, *layers.__path__, *schedules.__path__)
    return digest_of_sources(versions, folders)
