"""ONNX Runtime on single linear layers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tvm_coexec.layers import Linear

COPIES = 4
"""Times that a layer stands in the model that is timed, each on inputs of its own: they share what a call costs."""

_ACTIVATION_NODES = {
    "relu": lambda x, y: [helper.make_node("Relu", [x], [y])],
    "gelu": lambda x, y: [helper.make_node("Gelu", [x], [y])],
    "gelu_tanh": lambda x, y: [helper.make_node("Gelu", [x], [y], approximate="tanh")],
    "relu6": lambda x, y: [helper.make_node("Clip", [x, "zero", "six"], [y])],
    "hard_swish": lambda x, y: [helper.make_node("HardSwish", [x], [y])],
    "sigmoid": lambda x, y: [helper.make_node("Sigmoid", [x], [y])],
    "silu": lambda x, y: [
        helper.make_node("Sigmoid", [x], [f"{y}.sigmoid"]),
        helper.make_node("Mul", [x, f"{y}.sigmoid"], [y]),
    ],
}


@dataclass
class Peer:
    """An engine ready to run; ``run`` computes the layer ``copies`` times."""

    run: Callable[[], None]
    cores: tuple[int, ...]
    copies: int = COPIES

    def time_us(self, repeats: int) -> list[float]:
        """Microseconds a layer, with the process on the peer's own cores."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.cores)
        try:
            self.run()
            return [self._once_us() for _ in range(repeats)]
        finally:
            os.sched_setaffinity(0, before)

    def _once_us(self) -> float:
        start = time.perf_counter_ns()
        self.run()
        return (time.perf_counter_ns() - start) / 1e3 / self.copies


def linear_model(layer: Linear, copies: int = 1, seed: int = 0) -> onnx.ModelProto:
    """``copies`` of a layer with the same random weights, each with an input, and a residual, of its own."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((layer.k, layer.n), np.float32) / np.float32(np.sqrt(layer.k))
    constants = {"weights": weights, "bias": rng.standard_normal(layer.n, np.float32)}
    if "relu6" in layer.epilogue:
        constants |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    nodes, inputs, outputs = [], [], []
    for copy in range(copies):
        inputs.append(helper.make_tensor_value_info(f"x{copy}", TensorProto.FLOAT, [layer.m, layer.k]))
        nodes.append(helper.make_node("MatMul", [f"x{copy}", "weights"], [f"product{copy}"]))
        value = f"product{copy}"
        for place, step in enumerate(layer.epilogue):
            result = f"value{copy}.{place}"
            if step == "bias":
                nodes.append(helper.make_node("Add", [value, "bias"], [result]))
            elif step == "residual":
                inputs.append(helper.make_tensor_value_info(f"r{copy}", TensorProto.FLOAT, [layer.m, layer.n]))
                nodes.append(helper.make_node("Add", [value, f"r{copy}"], [result]))
            else:
                nodes += _ACTIVATION_NODES[step](value, result)
            value = result
        nodes.append(helper.make_node("Identity", [value], [f"y{copy}"]))
        outputs.append(helper.make_tensor_value_info(f"y{copy}", TensorProto.FLOAT, [layer.m, layer.n]))
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "layer", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def onnxruntime_peer(model: onnx.ModelProto, threads: int, cores: Sequence[int], copies: int = COPIES) -> Peer:
    """ONNX Runtime with inputs and outputs bound to memory that is used again and again.

    Its threads inherit the cores of the thread that makes the session, so that two threads have exactly two cores.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    finally:
        os.sched_setaffinity(0, before)
    rng = np.random.default_rng(1)
    binding = session.io_binding()
    for value in session.get_inputs():
        array = rng.standard_normal(tuple(value.shape), np.float32)
        binding.bind_ortvalue_input(value.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for value in session.get_outputs():
        room = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(value.shape), np.float32)
        binding.bind_ortvalue_output(value.name, room)
    return Peer(lambda: session.run_with_iobinding(binding), tuple(cores), copies)
