"""Any operator that Relax can legalise: whole, on the CPU alone, by the loops that Relax makes of it.

Operands: the tensors ``input``, ``input1`` …, ``output`` as they lie in the network, and ``constant0`` … as the model
gives them. The operator's own kernels run on compact copies, where what lies in the network is not compact already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tvm_coexec.layers import Hardware, ImageLayouts, Opaque, Variant, constant_name

from .dispatch import ERROR_BOUND, Dispatch

if TYPE_CHECKING:
    from .frame import Launch

IMPLEMENTATION = "relax"


def operand_names(layer: Opaque, variant: Variant) -> tuple[str, ...]:
    """Names of the buffers that the half reads and writes."""
    constants = (constant_name(index) for index in range(len(layer.constants)))
    return (*input_names(layer), *constants, "output")


def input_names(layer: Opaque) -> tuple[str, ...]:
    """Roles of the activations that the layer reads."""
    return tuple(f"input{index or ''}" for index in range(len(layer.inputs)))


def pack(layer: Opaque, params: Mapping[str, np.ndarray], variant: Variant) -> dict[str, np.ndarray]:
    """Constants as the kernels read them: as they are."""
    return dict(params)


def error_bound(variant: Variant) -> float:
    """Bound the error of a result, relative to the largest value of the output."""
    return ERROR_BOUND


def dispatch(layer: Opaque, side: str, variant: Variant) -> Dispatch:
    """A half is one call."""
    return Dispatch(grid=(1, 1), group=(1, 1), unit_axis=0, padded_rows=layer.output.rows)


def default_variant(layer: Opaque, side: str, hardware: Hardware) -> Variant:
    """Give the only variant; there is none for the GPU."""
    return variants(layer, side, hardware)[0]


def variants(layer: Opaque, side: str, hardware: Hardware) -> list[Variant]:
    """Give one variant for the CPU, none for the GPU."""
    return [Variant.make(IMPLEMENTATION)] if side == "cpu" else []


def build(layer: Opaque, side: str, variant: Variant, layouts: ImageLayouts | None = None) -> tuple[Launch, ...]:
    """Build kernels that copy the inputs, the operator's own, and one that copies the output."""
    from .opaque_kernels import launches

    if side != "cpu":
        raise ValueError(f"{layer.operator} runs on the CPU alone")
    names = zip(input_names(layer), layer.inputs, strict=True)
    return launches(layer, dict(names), layouts or ImageLayouts.alone(layer), dispatch(layer, side, variant))
