"""From a model, in the user's format, to a graph of layers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..graph import Graph
from ..layouts import fit_images

if TYPE_CHECKING:
    import onnx
    from tvm import IRModule

    from .trace import Trace


def to_graph(model: str | os.PathLike[str] | onnx.ModelProto | IRModule) -> Graph:
    """Read a model and form its layers.

    Parameters
    ----------
    model
        The path of an ONNX file, an ONNX model, or a Relax module whose function ``main`` is the model.

    Raises
    ------
    ModelError
        If the model holds what cannot be built: the message names the operator, its node, and what is supported.
    """
    from .attention import collapse_attention
    from .fuse import fuse
    from .patterns import collapse_patterns

    return fit_images(fuse(collapse_attention(collapse_patterns(_trace(model)))))


def _trace(model: str | os.PathLike[str] | onnx.ModelProto | IRModule) -> Trace:
    kind = type(model).__name__
    if kind == "IRModule":
        from .relax import trace_relax

        return trace_relax(model)
    if not isinstance(model, str | os.PathLike) and kind != "ModelProto":
        raise ModelError(f"cannot build from a {kind}; give the path of an ONNX file, a ModelProto or an IRModule")
    try:
        from .onnx import trace_onnx
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise ModelError("reading ONNX models needs the package onnx; install tvm-coexec[onnx]") from error
    return trace_onnx(Path(model) if isinstance(model, str | os.PathLike) else model)
