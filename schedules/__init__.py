"""What a layer computes and how: one file per operator family, CPU and GPU side by side.

A family module gives, for its layer class: ``variants``, ``default_variant``, ``operand_names``, ``pack``, ``dispatch``
(none of which needs a compiler) and ``build``, which makes the scheduled kernels of a half. The two halves of a layer
may read different packings of its parameters, so an operand's name says how it is packed. ``halo`` and
``halo_kernels`` are no family: they have the kernel that follows one whose output shares memory with others; nor is
``gpu_products``, which has kernels of several.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

import numpy as np

from tvm_coexec.errors import ModelError
from tvm_coexec.layers import KERNEL_TYPES, Layer, Variant

from . import attention, conv2d, gpu_products, images
from .packing import Stored, as_read

__all__ = ["attention", "check_has_kernels", "conv2d", "family", "gpu_products", "images", "store"]


def family(layer: Layer) -> ModuleType:
    """The module that knows how to compute a layer."""
    check_has_kernels(layer, f"a layer {layer.op}")
    return import_module(layer.kernels)


def store(layer: Layer, params: Mapping[str, np.ndarray], variant: Variant) -> dict[str, Stored]:
    """Pack a half's constants for a module's file: as its kernels read them, unless the family has smaller ones."""
    module = family(layer)
    if hasattr(module, "store"):
        smaller: dict[str, Stored] = module.store(layer, params, variant)
        return smaller
    return as_read(module.pack(layer, params, variant))


def check_has_kernels(layer: Layer, name: str) -> None:
    """Refuse a layer of a type of numbers that kernels are not made for."""
    if layer.dtype not in KERNEL_TYPES:
        raise ModelError(
            f"{name} computes with {layer.dtype}, but kernels are made for {', '.join(KERNEL_TYPES)} alone; "
            "convert the model to that type"
        )
