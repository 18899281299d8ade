"""From a model, in the user's format, to a graph of layers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from tvm_coexec.graph.layouts import fit_images

from ..errors import ModelError
from ..graph import Graph

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram
    from tvm import IRModule

    from .trace import Trace

    Model: TypeAlias = str | os.PathLike[str] | onnx.ModelProto | IRModule | ExportedProgram


Shapes: TypeAlias = Mapping[str, Sequence[int]]
"""Shapes of inputs by name, for dimensions that a model leaves open."""


def to_graph(model: Model, shapes: Shapes | None = None) -> Graph:
    """Read a model and form its layers.

    Parameters
    ----------
    model
        The path of an ONNX file or of a TFLite file (``.tflite``), an ONNX model, a program of ``torch.export``, or a
        Relax module whose function ``main`` is the model.
    shapes
        Shapes of the inputs whose dimensions the model leaves open.

    Raises
    ------
    ModelError
        If the model holds what cannot be built: the message names the operator, its node, and what is supported.
    """
    from tvm_coexec.frontends.fusing.fuser import fuse
    from tvm_coexec.frontends.patterns.activations import collapse_patterns
    from tvm_coexec.frontends.patterns.attention import collapse_attention
    from tvm_coexec.frontends.patterns.products import collapse_products

    trace = collapse_patterns(_trace(model, shapes or {}))
    graph = fit_images(fuse(collapse_products(collapse_attention(trace))))
    graph.validate()
    return graph


def _trace(model: Model, shapes: Shapes) -> Trace:
    kind = type(model).__name__
    if kind == "IRModule":
        from tvm_coexec.frontends.relax.module import trace_relax

        return trace_relax(model, shapes)
    if kind == "ExportedProgram":
        if shapes:
            raise ModelError("shapes are given for a program of torch.export; export it with these shapes instead")
        from tvm_coexec.frontends.torch.program import trace_torch

        return trace_torch(cast("ExportedProgram", model))
    if not isinstance(model, str | os.PathLike) and kind != "ModelProto":
        raise ModelError(
            f"cannot build from a {kind}; give the path of an ONNX file or a TFLite file, a ModelProto, an "
            "ExportedProgram or an IRModule"
        )
    if isinstance(model, str | os.PathLike) and Path(model).suffix == ".tflite":
        return _trace_tflite(Path(model), shapes)
    try:
        from tvm_coexec.frontends.onnx.model import trace_onnx
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise ModelError("reading ONNX models needs the package onnx; install tvm-coexec[onnx]") from error
    return trace_onnx(Path(model) if isinstance(model, str | os.PathLike) else model, shapes)


def _trace_tflite(path: Path, shapes: Shapes) -> Trace:
    try:
        import tflite  # noqa: F401 - what TVM reads such files with
    except ModuleNotFoundError as error:
        raise ModelError("reading TFLite models needs the package tflite; install tvm-coexec[tflite]") from error
    from tvm_coexec.frontends.tflite.model import trace_tflite

    return trace_tflite(path, shapes)
