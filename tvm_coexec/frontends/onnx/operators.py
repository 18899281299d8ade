"""ONNX operators that TVM's importer lacks or gets wrong: their converters by name."""

from __future__ import annotations

from collections.abc import Mapping

from . import elementwise as onnx_elementwise
from . import indexing as onnx_indexing
from . import normalisation as onnx_normalisation
from . import pooling as onnx_pooling
from . import products as onnx_products
from . import quantised as onnx_quantised
from . import recurrent as onnx_recurrent
from . import resize as onnx_resize
from . import suppression as onnx_suppression
from .call import Converter

CONVERTERS: Mapping[str, Converter] = {
    **onnx_elementwise.CONVERTERS,
    **onnx_indexing.CONVERTERS,
    **onnx_normalisation.CONVERTERS,
    **onnx_products.CONVERTERS,
    **onnx_quantised.CONVERTERS,
    **onnx_recurrent.CONVERTERS,
    **onnx_resize.CONVERTERS,
    **onnx_suppression.CONVERTERS,
}

SECOND_RESULTS: Mapping[str, Converter] = {"MaxPool": onnx_pooling.places_of_maxima}
"""What makes the second results of operators of which the first is another converter's."""
