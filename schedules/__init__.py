"""What a layer computes and how: one file per operator family, CPU and GPU side by side.

A family module gives, for its layer class: ``operand_names``, ``pack``, ``variants``, ``default_variant``,
``dispatch`` (none of which needs a compiler) and ``build``, which makes the scheduled kernel. For convolutions, whose
implementations pack weights in ways of their own, ``operand_names`` and ``pack`` also take the variant, ``variants``,
``dispatch`` and ``build`` take the layouts of the images, and ``build`` gives the kernels of a half in their order.
"""

from __future__ import annotations

from types import ModuleType

from tvm_coexec.layers import Layer

from . import conv2d, linear, rowwise

_FAMILIES = {"conv2d": conv2d, "linear": linear, "rowwise": rowwise}


def family(layer: Layer) -> ModuleType:
    """The module that knows how to compute a layer."""
    return _FAMILIES[layer.op]
