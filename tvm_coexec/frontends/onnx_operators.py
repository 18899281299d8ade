"""ONNX operators that TVM's importer lacks or gets wrong: their converters by name."""

from __future__ import annotations

from collections.abc import Mapping

from . import (
    onnx_counted,
    onnx_elementwise,
    onnx_indexing,
    onnx_normalisation,
    onnx_quantised,
    onnx_recurrent,
    onnx_resize,
)
from .onnx_call import Converter

CONVERTERS: Mapping[str, Converter] = {
    **onnx_counted.CONVERTERS,
    **onnx_elementwise.CONVERTERS,
    **onnx_indexing.CONVERTERS,
    **onnx_normalisation.CONVERTERS,
    **onnx_quantised.CONVERTERS,
    **onnx_recurrent.CONVERTERS,
    **onnx_resize.CONVERTERS,
}
