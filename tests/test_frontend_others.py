"""TFLite files, and what is no model."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import evaluate

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph


def test_a_tflite_file(tmp_path: Path) -> None:
    tflite = pytest.importorskip("tflite", reason="needs the package tflite, to read TFLite files")
    random = np.random.default_rng(0)
    weights, bias = random.standard_normal((4, 6), np.float32), random.standard_normal(4, np.float32)
    path = tmp_path / "model.tflite"
    path.write_bytes(_fully_connected(tflite, weights, bias))
    graph = to_graph(path)
    assert [node.layer.op for node in graph.nodes] == ["linear"]
    x = random.standard_normal((2, 6), np.float32)
    (result,) = evaluate(graph, {graph.inputs[0]: x}).values()
    np.testing.assert_allclose(result, x @ weights.T + bias, rtol=1e-5, atol=1e-6)


def test_tflite_files_that_are_none(tmp_path: Path) -> None:
    pytest.importorskip("tflite", reason="needs the package tflite, to read TFLite files")
    with pytest.raises(ModelError, match="there is no model file"):
        to_graph(tmp_path / "absent.tflite")
    path = tmp_path / "model.tflite"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="is no TFLite model"):
        to_graph(path)


def test_tflite_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(24))
    monkeypatch.setitem(sys.modules, "tflite", None)
    for name in [name for name in sys.modules if name.startswith("tvm_coexec.frontends.tflite")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModelError, match=r"needs the package tflite; install tvm-coexec\[tflite\]"):
        to_graph(tmp_path / "model.tflite")


def _fully_connected(tflite: Any, weights: np.ndarray, bias: np.ndarray) -> bytes:
    """A TFLite file of one layer on two rows."""
    flatbuffers = pytest.importorskip("flatbuffers", reason="needs flatbuffers, to write TFLite files")
    builder = flatbuffers.Builder(1024)

    def offsets(start: Any, items: list[int]) -> int:
        start(builder, len(items))
        for item in reversed(items):
            builder.PrependUOffsetTRelative(item)
        return int(builder.EndVector())

    def buffer(data: bytes) -> int:
        content = builder.CreateByteVector(data) if data else None
        tflite.BufferStart(builder)
        if content is not None:
            tflite.BufferAddData(builder, content)
        return int(tflite.BufferEnd(builder))

    def tensor(name: str, shape: tuple[int, ...], number: int) -> int:
        label, extents = builder.CreateString(name), builder.CreateNumpyVector(np.array(shape, np.int32))
        tflite.TensorStart(builder)
        tflite.TensorAddShape(builder, extents)
        tflite.TensorAddType(builder, tflite.TensorType.FLOAT32)
        tflite.TensorAddBuffer(builder, number)
        tflite.TensorAddName(builder, label)
        return int(tflite.TensorEnd(builder))

    n, k = weights.shape
    buffers = offsets(tflite.ModelStartBuffersVector, [buffer(b""), buffer(weights.tobytes()), buffer(bias.tobytes())])
    shapes = [("x", (2, k), 0), ("weights", (n, k), 1), ("bias", (n,), 2), ("y", (2, n), 0)]
    tensors = offsets(tflite.SubGraphStartTensorsVector, [tensor(*entry) for entry in shapes])
    tflite.FullyConnectedOptionsStart(builder)
    options = tflite.FullyConnectedOptionsEnd(builder)
    read, made = (builder.CreateNumpyVector(np.array(indices, np.int32)) for indices in ([0, 1, 2], [3]))
    tflite.OperatorStart(builder)
    tflite.OperatorAddInputs(builder, read)
    tflite.OperatorAddOutputs(builder, made)
    tflite.OperatorAddBuiltinOptionsType(builder, tflite.BuiltinOptions.FullyConnectedOptions)
    tflite.OperatorAddBuiltinOptions(builder, options)
    operators = offsets(tflite.SubGraphStartOperatorsVector, [tflite.OperatorEnd(builder)])
    first, last = (builder.CreateNumpyVector(np.array(indices, np.int32)) for indices in ([0], [3]))
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, tensors)
    tflite.SubGraphAddInputs(builder, first)
    tflite.SubGraphAddOutputs(builder, last)
    tflite.SubGraphAddOperators(builder, operators)
    subgraphs = offsets(tflite.ModelStartSubgraphsVector, [tflite.SubGraphEnd(builder)])
    tflite.OperatorCodeStart(builder)
    tflite.OperatorCodeAddBuiltinCode(builder, tflite.BuiltinOperator.FULLY_CONNECTED)
    tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, tflite.BuiltinOperator.FULLY_CONNECTED)
    codes = offsets(tflite.ModelStartOperatorCodesVector, [tflite.OperatorCodeEnd(builder)])
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddOperatorCodes(builder, codes)
    tflite.ModelAddSubgraphs(builder, subgraphs)
    tflite.ModelAddBuffers(builder, buffers)
    builder.Finish(tflite.ModelEnd(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
