"""Engines beside ours: each computes what ONNX Runtime computes, in a process that can be stopped."""

import os
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
from linear_model import linear_model
from networks import NETWORKS
from onnx_builder import OnnxBuilder, linear, random_inputs, run_onnx
from peer_process import PeerProcess, save_network
from peers import PEERS, PeerError, prepare

from tvm_coexec.frontends import to_graph
from tvm_coexec.layers import Linear
from tvm_coexec.machine.cores import usable_cores

SMALL = {name: (75 if name == "inception_v3" else 32) for name in NETWORKS if name != "minilm"}
REFUSED = (("ncnn", "vit_b16"), ("ncnn", "minilm"))
"""ncnn has neither values of five axes nor a layer for what its converter makes of an embedding."""


def check(engine: str, name: str, model: onnx.ModelProto, inputs: dict[str, np.ndarray], folder: Path) -> None:
    save_network(folder, model, inputs)
    if (engine, name) in REFUSED:
        with pytest.raises(PeerError, match=r"refused|not converted"):
            prepared_output(engine, folder, inputs)
        return
    (expected,) = run_onnx(model, inputs).values()
    result = prepared_output(engine, folder, inputs)
    np.testing.assert_allclose(result.reshape(-1), expected.reshape(-1), atol=1e-4 * np.abs(expected).max(), rtol=0)


def prepared_output(engine: str, folder: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    try:
        prepared = prepare(engine, folder / "model.onnx", inputs, 1)
    except PeerError as error:
        if str(error).startswith("not installed"):
            pytest.skip(f"{engine}: {error}")
        raise
    return prepared.output()


@pytest.mark.parametrize("engine", PEERS)
@pytest.mark.parametrize("name", SMALL)
def test_engines_agree(engine: str, name: str, tmp_path: Path) -> None:
    model = NETWORKS[name](size=SMALL[name], width=1 / 12, classes=10)
    check(engine, name, model, random_inputs(model), tmp_path)


@pytest.mark.parametrize("engine", PEERS)
def test_engines_take_token_numbers(engine: str, tmp_path: Path) -> None:
    model = NETWORKS["minilm"](size=8, width=1 / 12, depth=1, words=50)
    check(engine, "minilm", model, {"input": np.arange(8, dtype=np.int64)[None] * 6}, tmp_path)


def test_a_process_answers_and_is_stopped(tmp_path: Path) -> None:
    builder = OnnxBuilder(x=(3, 16))
    model = builder.model(linear(builder, "x", 16, 8))
    inputs = random_inputs(model)
    save_network(tmp_path, model, inputs)
    process = PeerProcess("onnxruntime", tmp_path, 1, usable_cores()[:1])
    try:
        times_us = process.time_us(3)
        assert len(times_us) == 3 and min(times_us) > 0
        state = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        assert state == "T", "stopped while others are measured"
        (expected,) = run_onnx(model, inputs).values()
        np.testing.assert_allclose(process.output, expected, rtol=1e-5)
    finally:
        process.close()


def test_what_an_engine_refuses_is_said(tmp_path: Path) -> None:
    builder = OnnxBuilder(x=(3, 16))
    save_network(tmp_path, builder.model(builder.add("Unheard", "x")), {"x": np.zeros((3, 16), np.float32)})
    with pytest.raises(PeerError, match=r"refused: .*Unheard"):
        PeerProcess("onnxruntime", tmp_path, 1, usable_cores()[:1])


def test_an_engine_that_dies_while_it_is_timed_is_an_error(tmp_path: Path) -> None:
    model = linear_model(Linear(3, 8, 4))
    save_network(tmp_path, model, random_inputs(model))
    engine = PeerProcess("onnxruntime", tmp_path, 1, usable_cores()[:1])
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(PeerError, match="died with status -9"):
        engine.time_us(1)
    engine.close()


@pytest.mark.parametrize("activation", ["relu", "relu6", "gelu", "gelu_tanh", "silu", "hard_swish", "sigmoid"])
def test_the_model_of_a_layer_is_that_layer(activation: str) -> None:
    layer = Linear(5, 40, 70, ("bias", "residual", activation))
    assert [node.layer for node in to_graph(linear_model(layer, copies=2)).nodes] == [layer, layer]
