"""Engines that share nothing with this one and say what a model computes, its inner values included."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import ModelError

if TYPE_CHECKING:
    from ..frontends import Model


class Evaluator(Protocol):
    """A model in another engine."""

    @property
    def engine(self) -> str:
        """What the user knows the engine as."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the model's outputs, in its order."""

    @property
    def values(self) -> Sequence[str]:
        """Names of the inner values that can be seen."""

    @property
    def choices(self) -> Mapping[str, Sequence[int]]:
        """The whole numbers that an input may be: of a table's entries, or what it is compared with and others."""

    @property
    def steps(self) -> Mapping[str, float]:
        """How far numbers lie apart that the integers of a quantised tensor stand for, of floats made of such."""

    @property
    def rounding(self) -> Mapping[str, float]:
        """How far the engine itself is off, for values that it only approximates."""

    def run(self, arrays: Sequence[np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """Compute outputs or inner values by name from the inputs in the model's order."""


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
