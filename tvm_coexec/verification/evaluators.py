"""The engine that judges a model: it shares nothing with this one, and says what the model computes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError
from .evaluator import Evaluator

if TYPE_CHECKING:
    from ..frontends import Model


def evaluator_for(model: Model) -> Evaluator:
    """The engine that judges a model: the one of its own format, or what stands in for it where it is not installed.

    Raises
    ------
    ModelError
        No engine for this kind of model is installed, or none of them takes it.
    """
    kind = type(model).__name__
    if kind == "IRModule":
        from .program_evaluators import RelaxEvaluator

        return RelaxEvaluator(model)
    if kind == "ExportedProgram":
        from .program_evaluators import TorchEvaluator

        return TorchEvaluator(model)
    if isinstance(model, str | os.PathLike) and Path(model).suffix == ".tflite":
        return _litert(Path(model))
    from .onnx_evaluators import onnx_evaluator

    return onnx_evaluator(model)


def _litert(path: Path) -> Evaluator:
    try:
        from .litert_evaluator import LiteRtEvaluator
    except ModuleNotFoundError as error:
        raise ModelError("checking TFLite models needs LiteRT; run: pip install ai-edge-litert") from error
    return LiteRtEvaluator(path)
