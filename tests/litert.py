"""TFLite files of a few operators, and what LiteRT computes with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from reference import evaluate
from tflite_writer import TYPES, Writer

from tvm_coexec.frontends import to_graph
from tvm_coexec.graph import Graph

WINDOW = {"strideH": 1, "strideW": 1}
CONVOLUTION = WINDOW | {"dilationHFactor": 1, "dilationWFactor": 1}
random = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def random_input(detail: dict[str, Any], low: float = -3) -> np.ndarray:
    """Small numbers of whatever type."""
    generator, dtype = np.random.default_rng(1), np.dtype(detail["dtype"])
    if dtype.kind == "f":
        return generator.uniform(low, 3, detail["shape"]).astype(dtype)
    limit = 100 if dtype.itemsize == 1 else 3
    return generator.integers(0 if dtype.kind == "b" else -limit, limit, detail["shape"]).astype(dtype)


def run_litert(content: bytes, low: float = -3) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random inputs and what LiteRT makes of them."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    inputs = [random_input(detail, low) for detail in interpreter.get_input_details()]
    for detail, array in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return inputs, [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def largest_inside(content: bytes, inputs: Sequence[np.ndarray]) -> float:
    """The largest number of all that a file computes on the way: rounding is of its size, however much cancels."""
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # which keep what is between to themselves
    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=resolver, experimental_preserve_all_tensors=True
    )
    interpreter.allocate_tensors()
    for detail, array in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    made = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_tensor_details() if detail["name"]]
    return max(float(np.abs(array).max(initial=0)) for array in made if array.dtype.kind == "f")


def graph_of(content: bytes, folder: Path) -> Graph:
    path = folder / "model.tflite"
    path.write_bytes(content)
    return to_graph(path)


def check(content: bytes, folder: Path, low: float = -3, tolerance: float = 2e-6, *, may_cancel: bool = False) -> Graph:
    """The graph of a file that computes what LiteRT computes, up to ``tolerance`` of the largest number.

    Where results ``may_cancel``, that is the largest of all that are made on the way, too.
    """
    graph = graph_of(content, folder)
    inputs, expected = run_litert(content, low)
    least = largest_inside(content, inputs) if may_cancel else 1e-9
    results = evaluate(graph, dict(zip(graph.inputs, inputs, strict=True)))
    for result, array in zip(results.values(), expected, strict=True):
        assert result.shape == array.shape
        np.testing.assert_allclose(
            result, array, rtol=0, atol=tolerance * max(np.abs(array.astype(float)).max(), least)
        )
    return graph


def operands_of(writer: Writer, operands: Sequence[Any]) -> list[int]:
    """Arrays are constants, shapes are inputs of the model, None is an operand left out."""
    made = []
    for position, operand in enumerate(operands):
        if isinstance(operand, np.ndarray):
            made.append(writer.constant(operand))
        else:
            made.append(-1 if operand is None else writer.tensor(f"x{position}", operand))
    return made


def file_of(operator: str, operands: Sequence[Any], shapes: Sequence[Sequence[int]], **options: Any) -> bytes:
    writer = Writer()
    read = operands_of(writer, operands)
    dtype = options.pop("dtype", "float32")
    outputs = [writer.add(operator, read, shapes[0], **options)]
    for position, shape in enumerate(shapes[1:]):
        outputs.append(writer.tensor(f"part{position}", shape))
        writer.operators[-1].outputs.append(outputs[-1])
    for output in outputs:
        writer.tensors[output].type = TYPES[dtype]
    given = [number for number, operand in zip(read, operands, strict=True) if isinstance(operand, tuple)]
    return writer.finish(given, outputs)


def check_operator(
    operator: str, operands: Sequence[Any], folder: Path, low: float = -3, parts: int = 1, **options: Any
) -> Graph:
    """A file of one operator, for whose results LiteRT itself tells the shapes."""
    _, results = run_litert(file_of(operator, operands, [[1]] * parts, **options), low)
    return check(file_of(operator, operands, [result.shape for result in results], **options), folder, low)


def ops(graph: Graph) -> list[str]:
    """What layers there are; of opaque ones, the operator that they are in the file."""
    return [getattr(node.layer, "operator", node.layer.op) for node in graph.nodes]
