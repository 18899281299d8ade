"""Turns a model, in the user's format, into a graph of layers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from tvm_coexec.graph.layouts import fit_images

from ..errors import ModelError
from ..graph import Graph
from .kept import form, heard_of, kept_graph, key_of

if TYPE_CHECKING:
    import onnx
    from numpy.typing import ArrayLike
    from torch.export import ExportedProgram
    from tvm import IRModule

    from .trace import Trace

    Model: TypeAlias = str | os.PathLike[str] | onnx.ModelProto | IRModule | ExportedProgram

_one_at_a_time = threading.RLock()
"""Held while a model becomes a graph: TVM's builder and what is recorded of warnings are the whole process's."""

Shapes: TypeAlias = Mapping[str, Sequence[int]]
"""Shapes of inputs by name, for dimensions that a model leaves open."""

Values: TypeAlias = "Mapping[str, ArrayLike]"
"""Values of inputs by name, which are constants then: an array of the input's shape, or a number for all of it."""


@dataclass(frozen=True)
class ReadModel:
    """A model that was read, and checked as far as that takes no compiler.

    Attributes
    ----------
    to_graph
        Forms its layers; see :func:`to_graph`.
    """

    to_graph: Callable[[], Graph]


def to_graph(model: Model, shapes: Shapes | None = None, values: Values | None = None) -> Graph:
    """Read a model and form its layers.

    Parameters
    ----------
    model
        The path of an ONNX file or of a TFLite file (``.tflite``), an ONNX model, a program of ``torch.export``, or a
        Relax module whose function ``main`` is the model.
    shapes
        Shapes of the inputs whose dimensions the model leaves open.
    values
        Values of inputs that are to be constants.

    Raises
    ------
    ModelError
        If the model holds what cannot be built: the message names the operator, its node, and what is supported.
    """
    return read_model(model, shapes, values).to_graph()


def read_model(model: Model, shapes: Shapes | None = None, values: Values | None = None) -> ReadModel:
    """Read a model as :func:`to_graph` does, but form no layers yet.

    What is wrong with a file, with inputs or with their shapes, and which operators cannot be imported, is told in the
    time that reading takes: TVM, which takes seconds to load, is not needed for it.
    """
    shapes, values = shapes or {}, values or {}
    kind = type(model).__name__
    if kind == "IRModule":
        from tvm_coexec.frontends.relax.module import trace_relax

        return ReadModel(partial(_formed, partial(trace_relax, model, shapes, values)))
    if kind == "ExportedProgram":
        if shapes or values:
            kind = "shapes" if shapes else "values"
            raise ModelError(f"{kind} are given for a program of torch.export; export it with these {kind} instead")
        from tvm_coexec.frontends.torch.program import trace_torch

        return ReadModel(partial(_formed, partial(trace_torch, cast("ExportedProgram", model))))
    if isinstance(model, str | os.PathLike):
        return _read_file(Path(model), shapes, values)
    if kind == "ModelProto":
        return ReadModel(partial(_formed, _read_onnx(cast("onnx.ModelProto", model), shapes, values)))
    raise ModelError(
        f"cannot build from a {kind}; give the path of an ONNX file or a TFLite file, a ModelProto, an "
        "ExportedProgram or an IRModule"
    )


def _read_file(path: Path, shapes: Shapes, values: Values) -> ReadModel:
    """Read a file, or take what was read of the same file before."""
    key = key_of(path, shapes, values)
    kept = None if key is None else kept_graph(key)
    if kept is not None:
        return ReadModel(kept.told)
    reader = _read_tflite if path.suffix == ".tflite" else _read_onnx
    with _one_at_a_time:
        trace, heard = heard_of(partial(reader, path, shapes, values))

    def to_graph() -> Graph:
        with _one_at_a_time:
            made = form(partial(_formed, trace), heard, key, partial(key_of, path, shapes, values))
        return made.told()

    return ReadModel(to_graph)


def _formed(trace: Callable[[], Trace]) -> Graph:
    """The layers of what a front end lists."""
    from tvm_coexec.frontends.fusing.fuser import fuse
    from tvm_coexec.frontends.patterns.activations import collapse_patterns
    from tvm_coexec.frontends.patterns.attention import collapse_attention
    from tvm_coexec.frontends.patterns.products import collapse_products

    with _one_at_a_time:
        traced = trace()
        graph = fit_images(fuse(collapse_products(collapse_attention(collapse_patterns(traced)))))
    graph = replace(graph, states=traced.states, fixed=traced.fixed)
    graph.validate()
    return graph


def _read_onnx(model: Path | onnx.ModelProto, shapes: Shapes, values: Values) -> Callable[[], Trace]:
    try:
        from tvm_coexec.frontends.onnx.file import read_onnx
        from tvm_coexec.frontends.onnx.simplify import simplify
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise ModelError("reading ONNX models needs the package onnx; install tvm-coexec[onnx]") from error
    proto, fixed = read_onnx(model, shapes, values)
    simple = simplify(proto)

    def trace() -> Trace:
        from tvm_coexec.frontends.onnx.model import trace_onnx

        return replace(trace_onnx(simple), fixed=fixed)

    return trace


def _read_tflite(path: Path, shapes: Shapes, values: Values) -> Callable[[], Trace]:
    try:
        from tvm_coexec.frontends.tflite.states import read_tflite
    except ModuleNotFoundError as error:
        if error.name != "tflite":
            raise
        raise ModelError("reading TFLite models needs the package tflite; install tvm-coexec[tflite]") from error
    file = read_tflite(path, shapes, values)

    def trace() -> Trace:
        from tvm_coexec.frontends.tflite.model import trace_tflite

        return trace_tflite(file)

    return trace
