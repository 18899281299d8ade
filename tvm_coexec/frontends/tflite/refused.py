"""Operators of TFLite files that nothing converts: they are refused before TVM, which takes seconds to load."""

from __future__ import annotations

from collections.abc import Sequence

import tflite

from tvm_coexec.errors import ModelError

from .file import FileOperator, FileTensor

KNOWN_CUSTOM = (
    *("Convolution2DTransposeBias", "TransformTensorBilinear", "Landmarks2TransformMatrix", "TransformLandmarks"),
    "TFLite_Detection_PostProcess",
)
OF_COMPLEX_NUMBERS = (
    *("ADD", "CAST", "COMPLEX_ABS", "EXPAND_DIMS", "IMAG", "MUL", "REAL", "RESHAPE", "RFFT2D", "SQUEEZE", "SUB"),
    "TRANSPOSE",
)
WITHOUT_CONVERTERS = ("CONCAT_EMBEDDINGS", "LSH_PROJECTION", "REDUCE_WINDOW", "RNN", "SKIP_GRAM")
"""TFLite's own operators that neither this package nor TVM converts."""
_CONTROL_FLOW = ("CALL", "STABLEHLO_CASE", "STABLEHLO_COMPOSITE", "STABLEHLO_WHILE", "WHILE")
_STATEFUL = ("ASSIGN_VARIABLE", "CALL_ONCE", "HASHTABLE", "SVDF", "VAR_HANDLE")


def check_operators(operators: Sequence[FileOperator], tensors: Sequence[FileTensor]) -> None:
    """Refuse all operators at once that are not TFLite's own and that nothing here knows, and then the first other one.

    Raises
    ------
    ModelError
        Naming them, or it.
    """
    foreign = [operator for operator in operators if operator.is_custom and operator.code not in KNOWN_CUSTOM]
    if foreign:
        sources = {operator.code: str(operator.source) for operator in reversed(foreign)}
        raise ModelError(
            f"{', '.join(reversed(sources.values()))}: no operators of TFLite's own; known are "
            f"{', '.join(KNOWN_CUSTOM)}, so cut the model before the others or replace them"
        )
    for operator in operators:
        _check(operator, [tensors[index].stored_dtype for index in (*operator.inputs, *operator.outputs) if index >= 0])


def _check(operator: FileOperator, dtypes: Sequence[str]) -> None:
    code, source = operator.code, operator.source
    if code in _CONTROL_FLOW:
        raise ModelError(f"{source} is control flow, which no module can hold; convert the model without it")
    if code in _STATEFUL:
        raise ModelError(f"{source} keeps a state from one run to the next; pass it as an input and an output")
    is_own = operator.is_custom or hasattr(tflite.BuiltinOperator, code)
    if code in WITHOUT_CONVERTERS or not is_own:
        raise ModelError(f"{source} is an operator that cannot be imported; replace it in the model")
    if "complex64" in dtypes and code not in OF_COMPLEX_NUMBERS:
        raise ModelError(
            f"{source} is given complex numbers, which only {', '.join(OF_COMPLEX_NUMBERS)} can be; replace it"
        )
