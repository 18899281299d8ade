"""A small real network: an MLP that classifies scikit-learn's images of digits, as an ONNX model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

HIDDEN = (512, 256)
_EPOCHS = 12
"""Large enough to be worth dividing, and right for 97 of 100 digits after seconds of training."""


@dataclass(frozen=True)
class Digits:
    """The trained network, and the images that it was not trained on: ``images [m, 64]``, ``labels [m]``."""

    model: onnx.ModelProto
    images: np.ndarray
    labels: np.ndarray

    def accuracy(self, scores: np.ndarray) -> float:
        """Share of the test images whose highest score, of ``[m, 10]``, is the label's."""
        return float((scores.argmax(axis=1) == self.labels).mean())


def trained_digits() -> Digits:
    """Train on three quarters of the images; takes a few seconds."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.25, random_state=0)
    network = MLPClassifier(HIDDEN, max_iter=_EPOCHS, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(train_x, train_y)
    return Digits(_to_onnx(network, len(test_x)), np.ascontiguousarray(test_x), test_y)


def _to_onnx(network: MLPClassifier, batch: int) -> onnx.ModelProto:
    nodes, initializers, value = [], [], "images"
    last = len(network.coefs_) - 1
    for index, (weights, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        for name, array in (("weights", weights), ("bias", bias)):
            initializers.append(numpy_helper.from_array(array.astype(np.float32), f"{name}{index}"))
        result = "scores" if index == last else f"sum{index}"
        nodes.append(helper.make_node("Gemm", [value, f"weights{index}", f"bias{index}"], [result], f"layer{index}"))
        if index != last:
            nodes.append(helper.make_node("Relu", [result], [f"hidden{index}"], f"relu{index}"))
            value = f"hidden{index}"
    shapes = {"images": [batch, network.coefs_[0].shape[0]], "scores": [batch, network.coefs_[-1].shape[1]]}
    ends = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(nodes, "digits", [ends["images"]], [ends["scores"]], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
