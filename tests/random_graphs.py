"""Random ONNX graphs, grown node by node on actual numbers, so that every node fits and none stands near a jump."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnx.shape_inference import InferenceError
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

T = TypeVar("T")

REFUSALS = (
    InferenceError,
    runtime.Fail,
    runtime.InvalidArgument,
    runtime.InvalidGraph,
    runtime.NotImplemented,
    runtime.RuntimeException,
)
"""What ONNX and ONNX Runtime raise for nodes that do not fit."""

OPSET = 20
LARGEST_SIZE = 20_000
LARGEST_VALUE = 1e4
LARGEST_RANK = 5

NAMES = (
    "{op}.bias",
    "n0.weights",
    "gpu.scratch_0",
    "self",
    "file",
    "x/1:0",
    "größe",
    "lambda",
    "n0_1",
    "input",
    "output",
)
"""Names of values that code might mistake for its own, or not take for a name."""


class Choices(Protocol):
    """What decides how a graph grows."""

    def integer(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, both included."""


class Seeded:
    """Choices by a seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def integer(self, low: int, high: int) -> int:
        return int(self._random.integers(low, high, endpoint=True))


class UnfitError(Exception):
    """An operator does not fit the values that there are; another is tried."""


class Growing:
    """A graph that grows: values are known with the numbers that they hold for the inputs."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.random = np.random.default_rng(choices.integer(0, 2**31 - 1))
        self.inputs: list[str] = []
        self.values: dict[str, np.ndarray] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.nodes: list[onnx.NodeProto] = []

    def integer(self, low: int, high: int) -> int:
        return self.choices.integer(low, high)

    def pick(self, options: Sequence[T]) -> T:
        return options[self.choices.integer(0, len(options) - 1)]

    def chance(self, percent: int) -> bool:
        return self.choices.integer(0, 99) < percent

    def axis(self, rank: int) -> int:
        """An axis, counted from either end."""
        return self.integer(-rank, rank - 1)

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return (self.random.standard_normal(shape) * scale).astype(np.float32)

    def input(self, shape: Sequence[int]) -> str:
        name = self._name(f"x{len(self.inputs)}", "Input")
        self.inputs.append(name)
        self.values[name] = self.normal(*shape)
        return name

    def const(self, array: Any, dtype: str = "float32") -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array, dtype)
        return name

    def value(self, fits: Callable[[np.ndarray], bool] = lambda array: True, dtype: str = "float32") -> str:
        """One of the values that fit, late ones more often: chains grow long."""
        names = [name for name, array in self.values.items() if array.dtype == dtype and fits(array)]
        if not names:
            raise UnfitError
        return names[-1] if self.chance(60) else self.pick(names)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.constants[name] if name in self.constants else self.values[name]

    def add(self, op: str, *operands: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node, and give the name of its first output."""
        names = [self._name(f"v{len(self.nodes)}" + f".{index}" * (index > 0), op) for index in range(outputs)]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        node = helper.make_node(op, list(operands), names, name=f"n{len(self.nodes)}", **attributes)
        results = evaluate_node(node, {name: self[name] for name in operands if name}, self.constants)
        for array in results:
            is_tame = array.dtype.kind != "f" or (
                np.isfinite(array).all() and np.abs(array).max(initial=0) <= LARGEST_VALUE
            )
            if not 0 < array.size <= LARGEST_SIZE or array.ndim > LARGEST_RANK or not is_tame:
                raise UnfitError
        self.nodes.append(node)
        self.values |= dict(zip(names, results, strict=True))
        return names[0]

    def _name(self, usual: str, op: str) -> str:
        name = self.pick(NAMES).format(op=op) if self.chance(4) else usual
        return usual if name in self.values or name in self.constants else name

    def model(self) -> onnx.ModelProto:
        """The graph with all that nothing reads as its outputs."""
        read = {name for node in self.nodes for name in node.input}
        made = [name for node in self.nodes for name in node.output]
        outputs = [name for name in made if name not in read]
        inner = [name for name in made if name in read]
        if inner and self.chance(20):
            outputs.append(self.pick(inner))
        used = [name for name in self.inputs if name in read]
        constants = [numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in read]
        graph = helper.make_graph(self.nodes, "random", self._infos(used), self._infos(outputs), constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)

    def arrays(self) -> list[np.ndarray]:
        """What the inputs hold, in the model's order."""
        read = {name for node in self.nodes for name in node.input}
        return [self.values[name] for name in self.inputs if name in read]

    def _infos(self, names: Sequence[str]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(self.values[name].dtype), self.values[name].shape
            )
            for name in names
        ]


def _is_tame(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all() and np.abs(array).max() <= LARGEST_VALUE)


def evaluate_node(
    node: onnx.NodeProto, operands: Mapping[str, np.ndarray], constants: Container[str]
) -> list[np.ndarray]:
    """What ONNX Runtime makes of one node; what it refuses, or where ONNX expects another shape, does not fit."""
    infos = {
        name: helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in operands.items()
    }
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    tensors = [numpy_helper.from_array(array, name) for name, array in operands.items() if name in constants]
    graph = helper.make_graph([node], "node", list(infos.values()), outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        given = {name: array for name, array in operands.items() if name not in constants}
        results: list[np.ndarray] = session.run(None, given)
        for output, array in zip(model.graph.output, results, strict=True):
            dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
            output.CopyFrom(helper.make_tensor_value_info(output.name, dtype, array.shape))
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except REFUSALS as error:
        raise UnfitError from error
    return results


def grow(choices: Choices, operators: Sequence[Callable[[Growing], Any]], nodes: int) -> Growing:
    """A graph of at least one node and about so many."""
    growing = Growing(choices)
    for _ in range(growing.integer(1, 2)):
        growing.input(random_shape(growing))
    for _ in range(100):
        if len(growing.nodes) >= nodes:
            break
        operator = growing.pick(operators)
        before = len(growing.nodes)
        try:
            operator(growing)
        except UnfitError:  # of an operator of several nodes, the first may stand: they are nodes like others
            if len(growing.nodes) == before:
                continue
    if not growing.nodes:
        growing.add("Relu", growing.inputs[0])
    return growing


def random_shape(growing: Growing) -> tuple[int, ...]:
    """An image's in half of the cases; sizes of one, odd sizes and more than a tile of channels are all there."""
    sizes = (1, 2, 3, 4, 5, 7, 8, 9)
    if growing.chance(50):
        channels = growing.pick((1, 2, 3, 4, 6, 8, 16, 32, 33, 40, 64))
        return (growing.pick((1, 1, 1, 2)), channels, growing.pick(sizes), growing.pick(sizes))
    rank = growing.pick((1, 2, 2, 3, 3, 3, 4, 5))
    return (*(growing.pick(sizes[:6]) for _ in range(rank - 1)), growing.pick((1, 3, 5, 8, 16, 31, 32, 40, 64)))


def has_rank(*ranks: int) -> Callable[[np.ndarray], bool]:
    return lambda array: array.ndim in ranks


def check(fits: Any) -> None:
    if not fits:
        raise UnfitError
