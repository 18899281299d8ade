"""Comparisons measure these networks: ONNX models of the published topologies with random weights.

Weights are scaled so that activations stay near 1, and batch normalisation has statistics that change something.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from tvm_coexec.errors import InputError

from .images import mobilenet_v2, resnet18, resnet50, squeezenet, vgg16
from .inception import inception_v3
from .transformers import minilm, vit_b16

NETWORKS: dict[str, Callable[..., onnx.ModelProto]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg16": vgg16,
    "inception_v3": inception_v3,
    "mobilenet_v2": mobilenet_v2,
    "squeezenet": squeezenet,
    "vit_b16": vit_b16,
    "minilm": minilm,
}
"""Networks by name; each takes ``size`` (of the image, or the text) and ``width``, those that classify ``classes``."""


def network(name: str) -> onnx.ModelProto:
    """Make a network of its published size, with the same weights every time."""
    if name not in NETWORKS:
        raise InputError(f"no network named {name!r}: give the path of an ONNX file, or one of {', '.join(NETWORKS)}")
    return NETWORKS[name]()
