"""What an ONNX node's attributes may be, where neither ONNX's checker nor TVM's importer looks at it."""

from __future__ import annotations

import math
import reprlib

from onnx import AttributeProto, NodeProto

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Source

from .values import DOMAINS

_LIMIT = 2**31

_LARGE = ("end", "ends", "start", "starts", "value_int", "value_ints")
"""Attributes that may be any whole number: constants, and bounds that are far away where they mean the end."""

_PADDING = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
_PADDED = ("AveragePool", "Conv", "ConvInteger", "ConvTranspose", "LpPool", "MaxPool", "QLinearConv")
_DIRECTIONS = ("forward", "reverse", "bidirectional")
_PIXELS = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
_WRITTEN = ("none", "add", "mul", "max", "min")
_SUMMED = ("none", "sum", "mean")

_SLOPED = ("Elu", "LeakyRelu", "Selu")
"""Operators whose factors a layer's step multiplies by zero as well, which NaN and infinity make NaN."""

_ACTIVATIONS = (
    *("Affine", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "ScaledTanh", "Sigmoid", "Softplus", "Softsign", "Tanh"),
    "ThresholdedRelu",
)

_BY_LOWER = {name.lower().encode(): name.encode() for name in _ACTIVATIONS}

WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    **{(operator, "auto_pad"): _PADDING for operator in _PADDED},
    **{(operator, "activations"): _ACTIVATIONS for operator in ("GRU", "LSTM", "RNN")},
    **{(operator, "direction"): _DIRECTIONS for operator in ("GRU", "LSTM", "RNN")},
    **{(operator, "reduction"): _WRITTEN for operator in ("ScatterElements", "ScatterND")},
    **{(operator, "reduction"): _SUMMED for operator in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")},
    **{(operator, "round_mode"): ("up", "down", "nearest") for operator in ("Cast", "CastLike")},
    ("BitShift", "direction"): ("LEFT", "RIGHT"),
    ("DepthToSpace", "mode"): ("DCR", "CRD"),
    ("Gelu", "approximate"): ("none", "tanh"),
    ("GridSample", "mode"): ("linear", "bilinear", "nearest", "cubic", "bicubic"),
    ("GridSample", "padding_mode"): ("zeros", "border", "reflection"),
    ("Pad", "mode"): ("constant", "reflect", "edge", "wrap"),
    ("Resize", "coordinate_transformation_mode"): (*_PIXELS, "tf_half_pixel_for_nn", "tf_crop_and_resize"),
    ("Resize", "keep_aspect_ratio_policy"): ("stretch", "not_larger", "not_smaller"),
    ("Resize", "mode"): ("nearest", "linear", "cubic"),
    ("Resize", "nearest_mode"): ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    ("RoiAlign", "coordinate_transformation_mode"): ("half_pixel", "output_half_pixel"),
    ("RoiAlign", "mode"): ("avg", "max"),
    ("TensorScatter", "mode"): ("linear", "circular"),
    ("Upsample", "mode"): ("nearest", "linear", "bilinear"),
}
"""The words that ONNX, of any version, knows for an operator's attribute."""


def write_activations(node: NodeProto) -> None:
    """Write the functions of a recurrent node as ONNX does: ONNX Runtime ignores case, and exporters rely on it."""
    for attribute in node.attribute:
        if WORDS.get((node.op_type, attribute.name)) == _ACTIVATIONS:
            written = [_BY_LOWER.get(word.lower(), word) for word in attribute.strings]
            del attribute.strings[:]
            attribute.strings.extend(written)


def check_attributes(node: NodeProto, source: Source) -> None:
    """Refuse whole numbers that ONNX and TVM cut off or quote their code for, and words that ONNX does not know.

    Slopes that are not finite are refused, too.
    What a call of the model's own function says is for the function's nodes to judge.

    Raises
    ------
    ModelError
        Naming the attribute.
    """
    if node.domain not in DOMAINS:
        return
    for attribute in node.attribute:
        if attribute.name not in _LARGE:
            _check_whole_numbers(attribute, source)
        if node.op_type in _SLOPED and not math.isfinite(attribute.f):
            raise ModelError(
                f"{source} has {attribute.f} as its attribute {attribute.name!r}, which has to be finite; "
                "export the model again"
            )
        words = WORDS.get((node.op_type, attribute.name))
        if words and not attribute.ref_attr_name:
            _check_word(attribute, words, source)


def _check_whole_numbers(attribute: AttributeProto, source: Source) -> None:
    """Refuse axes, sizes and the like that have more than 32 bits."""
    for number in (attribute.i, *attribute.ints):
        if not -_LIMIT <= number < _LIMIT:
            raise ModelError(
                f"{source} has {number} as its attribute {attribute.name!r}, beyond {_LIMIT - 1}; "
                "export the model again"
            )


def _check_word(attribute: AttributeProto, words: tuple[str, ...], source: Source) -> None:
    """Refuse words that would be taken for others, or for none."""
    for encoded in attribute.strings if attribute.type == AttributeProto.STRINGS else (attribute.s,):
        word = encoded.decode(errors="backslashreplace")
        if word not in words:
            raise ModelError(
                f"{source} has {reprlib.repr(word)} as its attribute {attribute.name!r}, which is none of "
                f"{', '.join(words)}; export the model again"
            )
