"""Where the maxima of windows lie, which MaxPool gives beside them."""

from __future__ import annotations

from typing import Any

from tvm_coexec.frontends.relax import maxima
from tvm_coexec.frontends.relax.maxima import Windows

from .call import Call


def places_of_maxima(call: Call) -> Any:
    """The address in the whole tensor of each window's first maximum.

    Addresses within an image may count its first axis fastest.
    """
    values, shape, pooled = call.attributes, call.type(0).shape, call.model.types[call.node.proto.output[1]].shape
    kernel = values["kernel_shape"]
    ones, none = [1] * len(kernel), [0] * 2 * len(kernel)
    given = (("strides", ones), ("dilations", ones), ("pads", none))
    windows = Windows(kernel, *(values.get(name, default) for name, default in given))
    is_turned = bool(values.get("storage_order", 0))
    find = maxima.places_of_maxima(shape, pooled, windows, in_image=False, first_is_fastest=is_turned)
    return call.loops(find, call.operand(0))
