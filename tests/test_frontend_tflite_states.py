"""TFLite's variables: a module is given their values and gives the next ones, as LiteRT keeps them itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from litert import graph_of, numbers
from reference import evaluate
from tflite_writer import TYPES, Writer

import tvm_coexec
from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.runtime.device import Device
from tvm_coexec.verification.litert_evaluator import LiteRtEvaluator
from tvm_coexec.verification.network import NetworkCheck


def variable(writer: Writer, name: str) -> int:
    """The handle of a variable."""
    handle = writer.add("VAR_HANDLE", [], (), "VarHandle", container="", sharedName=name)
    writer.tensors[handle].type = schema.TensorType.RESOURCE
    return handle


def read(writer: Writer, handle: int, shape: tuple[int, ...], dtype: str = "float32") -> int:
    tensor = writer.add("READ_VARIABLE", [handle], shape, "ReadVariable")
    writer.tensors[tensor].type = TYPES[dtype]
    return tensor


def assign(writer: Writer, handle: int, value: int) -> None:
    writer.add("ASSIGN_VARIABLE", [handle, value], (), "AssignVariable")
    writer.operators[-1].outputs = []


def beginning(writer: Writer, **values: np.ndarray) -> tuple[Writer, list[int], list[int]]:
    """A graph that gives variables their first values."""
    inner = Writer(writer)
    for name, value in values.items():
        assign(inner, variable(inner, name), inner.constant(value))
    return inner, [], []


def begun(writer: Writer) -> None:
    writer.add("CALL_ONCE", [], (), "CallOnce", initSubgraphIndex=1)
    writer.operators[-1].outputs = []


def delayed_sums() -> bytes:
    """The sum of an input and of those of two runs before, and a running sum that is read again once it is assigned."""
    writer = Writer()
    x = writer.tensor("x", (1, 4))
    begun(writer)
    line, total = variable(writer, "line"), variable(writer, "total")
    joined = writer.add("CONCATENATION", [read(writer, line, (2, 4)), x], (3, 4), "Concatenation", axis=0)
    assign(writer, line, writer.sliced(joined, 0, 1, 2))
    recent = writer.add("SUM", [joined, writer.integers([0])], (4,), "Reducer")
    assign(writer, total, writer.add("ADD", [read(writer, total, (1, 4)), x], (1, 4), "Add"))
    doubled = writer.add("ADD", [read(writer, total, (1, 4)), read(writer, total, (1, 4))], (1, 4), "Add")
    first = {"line": np.arange(8, dtype=np.float32).reshape(2, 4), "total": np.full((1, 4), -3, np.float32)}
    return writer.finish([x], [recent, doubled], [beginning(writer, **first)])


def by_litert(content: bytes, inputs: list[np.ndarray]) -> list[list[np.ndarray]]:
    """What LiteRT makes of inputs, one run after the other."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    results = []
    for array in inputs:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], array)
        interpreter.invoke()
        results.append([interpreter.get_tensor(one["index"]) for one in interpreter.get_output_details()])
    return results


def test_variables_go_on_as_litert_s_do(tmp_path: Path) -> None:
    graph = graph_of(delayed_sums(), tmp_path)
    assert graph.inputs == ["x", "line", "total"] and list(graph.states) == ["line", "total"]
    assert [state.output for state in graph.states.values()] == graph.outputs[2:] == ["line/next", "total/next"]
    inputs = [numbers(1, 4) for _ in range(5)]
    states = {name: state.initial for name, state in graph.states.items()}
    for array, expected in zip(inputs, by_litert(delayed_sums(), inputs), strict=True):
        results = evaluate(graph, {"x": array, **states})
        states = {name: results[state.output] for name, state in graph.states.items()}
        for result, right in zip(results.values(), expected, strict=False):
            np.testing.assert_allclose(result, right, rtol=0, atol=1e-5)


def test_a_module_tells_its_states_and_what_they_are_next(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(delayed_sums())
    built = tvm_coexec.build(path, device=device, split=0.5)
    built.export(tmp_path / "model.coexec")
    module = tvm_coexec.load(tmp_path / "model.coexec", device=device)
    states = module.initial_states
    np.testing.assert_array_equal(states["line"], np.arange(8, dtype=np.float32).reshape(2, 4))
    np.testing.assert_array_equal(states["total"], np.full((1, 4), -3, np.float32))
    inputs = [numbers(1, 4) for _ in range(4)]
    for array, expected in zip(inputs, by_litert(delayed_sums(), inputs), strict=True):
        results = module(array, **states)
        states = module.next_states(results)
        for result, right in zip(results.values(), expected, strict=False):
            np.testing.assert_allclose(result, right, rtol=0, atol=1e-5)
    assert NetworkCheck(path, to_graph(path)).verdict(built).agrees


def test_integers_stay_as_they_are(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("x", (1, 3), "int8", [0.5])
    begun(writer)
    handle = variable(writer, "last")
    before = read(writer, handle, (1, 3), "int8")
    total = writer.add("ADD", [before, x], (1, 3), "Add")
    for tensor in (before, total):
        writer.tensors[tensor].type = TYPES["int8"]
        writer.tensors[tensor].quantization = writer.tensors[x].quantization
    assign(writer, handle, total)
    content = writer.finish([x], [total], [beginning(writer, last=np.full((1, 3), -7, np.int8))])
    graph = graph_of(content, tmp_path)
    assert graph.tensors["last"].dtype == "int8" and (graph.states["last"].initial == -7).all()
    inputs = [np.array([[k, -40 * k, 90]], np.int8) for k in range(4)]
    last = graph.states["last"].initial
    for array, (expected,) in zip(inputs, by_litert(content, inputs), strict=True):
        results = list(evaluate(graph, {"x": array, "last": last}).values())
        np.testing.assert_array_equal(results[0], expected)
        last = results[1]


def test_a_variable_that_nothing_assigns_is_a_constant(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("x", (1, 4))
    begun(writer)
    total = writer.add("ADD", [x, read(writer, variable(writer, "offset"), (1, 4))], (1, 4), "Add")
    content = writer.finish([x], [total], [beginning(writer, offset=np.full((1, 4), 5, np.float32))])
    graph = graph_of(content, tmp_path)
    assert graph.inputs == ["x"] and not graph.states
    array = numbers(1, 4)
    np.testing.assert_allclose(next(iter(evaluate(graph, {"x": array}).values())), array + 5, rtol=1e-6)


def scaled_sum() -> bytes:
    """A sum that is read again as an output, beside a variable that nothing assigns."""
    writer = Writer()
    x = writer.tensor("x", (1, 4))
    begun(writer)
    total, factor = variable(writer, "total"), variable(writer, "factor")
    scaled = writer.add("MUL", [x, read(writer, factor, (1, 4))], (1, 4), "Mul")
    assign(writer, total, writer.add("ADD", [read(writer, total, (1, 4)), scaled], (1, 4), "Add"))
    first = {"total": np.ones((1, 4), np.float32), "factor": np.full((1, 4), 3, np.float32)}
    return writer.finish([x], [read(writer, total, (1, 4))], [beginning(writer, **first)])


def test_litert_judges_what_is_read_again_and_what_nothing_assigns(tmp_path: Path) -> None:
    graph, evaluator = graph_of(scaled_sum(), tmp_path), LiteRtEvaluator(tmp_path / "model.tflite")
    arrays = [numbers(1, 4), numbers(1, 4)]
    judged = evaluator.run(arrays, evaluator.outputs)
    results = list(evaluate(graph, dict(zip(graph.inputs, arrays, strict=True))).values())
    assert graph.inputs == ["x", "total"] and len(results) == len(evaluator.outputs) == 2
    for name, result in zip(evaluator.outputs, results, strict=True):
        np.testing.assert_allclose(judged[name], arrays[1] + 3 * arrays[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(result, arrays[1] + 3 * arrays[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("damage", [{"builtinOptions": None, "builtinOptionsType": 0}, {"outputs": []}])
def test_operators_of_variables_that_lack_what_they_need_are_damage(damage: dict[str, Any], tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("x", (1, 4))
    value = read(writer, variable(writer, "total"), (1, 4))
    for name, left in damage.items():
        setattr(writer.operators[0], name, left)
    total = writer.add("ADD", [x, value], (1, 4), "Add")
    with pytest.raises(ModelError, match="is a damaged TFLite model"):
        graph_of(writer.finish([x], [total]), tmp_path)


def running_sum(folder: Path, first: np.ndarray) -> Path:
    """A file that adds up what it is given."""
    writer = Writer()
    x = writer.tensor("x", (1, 4))
    begun(writer)
    handle = variable(writer, "total")
    total = writer.add("ADD", [read(writer, handle, (1, 4)), x], (1, 4), "Add")
    assign(writer, handle, total)
    path = folder / "model.tflite"
    path.write_bytes(writer.finish([x], [total], [beginning(writer, total=first)]))
    return path


def test_a_variable_has_the_shape_that_it_is_given_if_its_first_values_are_all_the_same(tmp_path: Path) -> None:
    path = running_sum(tmp_path, np.full((1, 4), 2, np.float32))
    graph = to_graph(path, {"x": (3, 4), "total": (3, 4)})
    np.testing.assert_array_equal(graph.states["total"].initial, np.full((3, 4), 2, np.float32))
    with pytest.raises(ModelError, match=r"^state 'total' is \[1, 4\] at first, \[1, 4\] in a run and \[3, 4\] in the"):
        to_graph(path, {"x": (3, 4)})
    path = running_sum(tmp_path, np.arange(4, dtype=np.float32).reshape(1, 4))
    with pytest.raises(ModelError, match=r"^variable 'total' is \[3, 4\], and its first values are \[1, 4\]; give"):
        to_graph(path, {"x": (3, 4), "total": (3, 4)})


def test_a_variable_without_a_first_value_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("x", (1, 4))
    handle = variable(writer, "lost")
    total = writer.add("ADD", [x, read(writer, handle, (1, 4))], (1, 4), "Add")
    assign(writer, handle, total)
    with pytest.raises(ModelError, match=r"^variable 'lost' is read before it has a value"):
        graph_of(writer.finish([x], [total]), tmp_path)
