"""ONNX's recurrent operators, compared with ONNX Runtime."""

from typing import Any

import numpy as np
import pytest
from onnx_builder import OnnxBuilder, check_against_onnxruntime, random_inputs
from reference import evaluate
from slow import slow_except

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import read_model, to_graph

pytestmark = pytest.mark.one_runtime


RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "lstm, both ways": ("LSTM", {"direction": "bidirectional"}),
    "lstm, clipped": ("LSTM", {"clip": 0.4, "activations": ["HardSigmoid", "Softsign", "Relu"]}),
    "lstm, of names in another case": ("LSTM", {"activations": ["hardsigmoid", "TANH", "softSign"]}),
    "gru": ("GRU", {"direction": "reverse"}),
    "gru, reset after the product": ("GRU", {"linear_before_reset": 1, "direction": "bidirectional"}),
    "rnn": ("RNN", {"activations": ["LeakyRelu"], "activation_alpha": [0.3]}),
}


@pytest.mark.parametrize("is_bidirectional", [False, True])
def test_the_states_of_a_recurrent_operator_may_be_inputs(is_bidirectional: bool) -> None:
    """Models that hear a sound piece by piece are given what they made of the last one."""
    directions = 2 if is_bidirectional else 1
    b = OnnxBuilder(x=(5, 2, 3), h=(directions, 2, 4), c=(directions, 2, 4))
    weights = [b.weights(directions, 16, 3), b.weights(directions, 16, 4), b.weights(directions, 32)]
    way = "bidirectional" if is_bidirectional else "forward"
    out = b.add("LSTM", "x", *weights, "", "h", "c", hidden_size=4, outputs=3, direction=way)
    check_against_onnxruntime(b.model(out, f"{out}.1", f"{out}.2"))
    b = OnnxBuilder(x=(5, 2, 3), h=(directions, 2, 4))
    weights = [b.weights(directions, 12, 3), b.weights(directions, 12, 4), b.weights(directions, 24)]
    out = b.add("GRU", "x", *weights, "", "h", hidden_size=4, outputs=2, direction=way)
    check_against_onnxruntime(b.model(out, f"{out}.1"))


def test_states_that_are_small() -> None:
    """ONNX Runtime's own lose digits here."""
    b = OnnxBuilder(x=(1, 2, 4))
    weights = 1e-5 * np.random.default_rng(0).standard_normal((1, 5, 4))
    model = b.model(b.add("RNN", "x", b.const(weights), b.weights(1, 5, 5), hidden_size=5))
    inputs = random_inputs(model)
    (result,) = evaluate(to_graph(model), inputs).values()
    np.testing.assert_allclose(result[0, 0], np.tanh(inputs["x"][0] @ weights[0].T), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "lengths"),
    slow_except(
        [*((name, None) for name in RECURRENT if "ways" not in name), ("gru", [5, 1]), ("lstm, both ways", [2, 5])],
        *(0, 1, 2, 4, 5),
    ),
)
def test_recurrent_operators(name: str, lengths: list[int] | None) -> None:
    operator, values = RECURRENT[name]
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    directions = 2 if values.get("direction") == "bidirectional" else 1
    b = OnnxBuilder(x=(5, 2, 3))
    weights = [
        b.weights(directions, gates * 4, 3),
        b.weights(directions, gates * 4, 4),
        b.weights(directions, gates * 8),
    ]
    given_lengths = "" if lengths is None else b.const(lengths, "int32")
    states = [b.weights(directions, 2, 4)]
    if operator == "LSTM":
        states += [b.weights(directions, 2, 4), b.weights(directions, 12)]
    outputs = 3 if operator == "LSTM" else 2
    out = b.add(operator, "x", *weights, given_lengths, *states, hidden_size=4, outputs=outputs, **values)
    check_against_onnxruntime(b.model(out, *(f"{out}.{position}" for position in range(1, outputs))))


def test_an_activation_that_onnx_does_not_know() -> None:
    b = OnnxBuilder(x=(5, 2, 3))
    out = b.add("LSTM", "x", b.weights(1, 16, 3), b.weights(1, 16, 4), hidden_size=4, activations=["Sigmoid", "Swish"])
    told = r"^LSTM \(node 'n0'\) has 'Swish' as its attribute 'activations', which is none of Affine, .*; export"
    with pytest.raises(ModelError, match=told):
        read_model(b.model(out))


def test_the_last_states_of_sequences_that_come_first() -> None:
    """ONNX Runtime has no kernel of this layout: the one that it has judges, on what was transposed."""
    results = []
    for layout, shape in ((1, (2, 5, 3)), (0, (5, 2, 3))):
        b = OnnxBuilder(x=shape)
        weights = [b.weights(1, 16, 3), b.weights(1, 16, 4), b.weights(1, 32)]
        out = b.add("LSTM", "x", *weights, hidden_size=4, layout=layout, outputs=3)
        graph = to_graph(b.model(f"{out}.1"))
        x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
        (result,) = evaluate(graph, {"x": x if layout else x.transpose(1, 0, 2)}).values()
        results.append(result if layout else result.transpose(1, 0, 2))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)
