"""ONNX's functions of one value that Relax would spread over several operators."""

from __future__ import annotations

STEPS: dict[str, tuple[str, tuple[tuple[str, float], ...]]] = {
    "Elu": ("elu", (("alpha", 1.0), ("", 1.0))),
    "HardSigmoid": ("hard_sigmoid", (("alpha", 0.2), ("beta", 0.5))),
    "HardSwish": ("hard_swish", ()),
    "Mish": ("mish", ()),
    "Selu": ("elu", (("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875))),
    "Softplus": ("softplus", ()),
}
"""The operation of each, and the attributes, with their defaults, that are its numbers."""
