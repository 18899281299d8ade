"""TFLite files in LiteRT, with its own kernels instead of XNNPACK's, so that every tensor can be read."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ai_edge_litert
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tvm_coexec.frontends.tflite.file import TfliteFile
from tvm_coexec.frontends.tflite.states import read_tflite

from ..errors import ModelError, first_line
from .evaluator import Evaluator
from .litert_models import with_own_operators, with_wide_weights, without_variables


class LiteRtEvaluator(Evaluator):
    """A TFLite file in LiteRT."""

    def __init__(self, path: Path) -> None:
        self.engine = f"LiteRT {ai_edge_litert.__version__}"
        file = read_tflite(path, {})
        try:
            self._interpreter: Any = Interpreter(
                model_content=with_wide_weights(with_own_operators(without_variables(path.read_bytes(), file))),
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                experimental_preserve_all_tensors=True,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{self.engine} refuses the model: {first_line(error)}") from None
        self.inputs = [file.tensors[index].name for index in file.inputs]
        self.outputs = [detail["name"] for detail in self._interpreter.get_output_details()]
        self._indices = {detail["name"]: detail["index"] for detail in self._interpreter.get_tensor_details()}
        self.values = list(self._indices)
        self.steps = _steps(file)

    def run(self, arrays: Sequence[np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
        details = self._interpreter.get_input_details()
        try:
            for detail, array in zip(details, arrays, strict=True):
                self._interpreter.resize_tensor_input(detail["index"], array.shape)
            self._interpreter.allocate_tensors()
            for detail, array in zip(details, arrays, strict=True):
                self._interpreter.set_tensor(detail["index"], array)
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"{self.engine} cannot run the model: {first_line(error)}") from None
        values = {}
        for name in wanted:
            with contextlib.suppress(ValueError):  # a tensor without data, such as one of an operator's own
                values[name] = np.array(self._interpreter.get_tensor(self._indices[name]))
        return values


def _steps(file: TfliteFile) -> dict[str, float]:
    """How far the numbers that floats can be lie apart, where these are made of a quantised tensor."""
    steps = {}
    for operator in file.operators:
        quantisation = file.tensors[operator.inputs[0]].quantisation if operator.code == "DEQUANTIZE" else None
        if quantisation is not None and quantisation.scale.size == 1:
            steps[file.tensors[operator.outputs[0]].name] = float(quantisation.scale.item())
    return steps
