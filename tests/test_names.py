"""Whatever a model calls its parts, it computes the same: names are never joined with the product's own."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from slow import slow_except
from small_modules import chain_of

import tvm_coexec
from tvm_coexec.cli import main
from tvm_coexec.compiler.packaging import package
from tvm_coexec.compiler.target import target_for
from tvm_coexec.graph import Graph, Node
from tvm_coexec.module.manifest import Manifest
from tvm_coexec.module.package import Package
from tvm_coexec.runtime.device import Device, open_device

DEPTH = 3
OWN_WORDS = ["", "0", "buffer 0", "buffer 1", "tensor", "constant", "scratch", "cpu", "gpu", "gpu.scratch_0", "input"]
OWN_WORDS += ["layer0.weights", "layer0.bias", "layer0", "weights", "bias", "output", "residual", "self", "file"]
UGLY_NAMES = ["fc.bias", "a/b", "../a", "a\0b", "a\nb", "{}", "%s", "\ud800", "名", "x" * 70_000, "class", "-h", "a b"]

names = st.lists(
    st.one_of(st.sampled_from(OWN_WORDS + UGLY_NAMES), st.text(max_size=4)),
    min_size=DEPTH + 1,
    max_size=DEPTH + 1,
    unique=True,
)


@cache
def pocl() -> Device:
    return open_device("pocl")


def renamed(graph: Graph, tensors: dict[str, str], nodes: dict[str, str]) -> Graph:
    def node(old: Node) -> Node:
        residual = None if old.residual is None else tensors[old.residual]
        ends = {"input": tensors[old.input], "residual": residual, "output": tensors[old.output]}
        return replace(old, name=nodes[old.name], **ends)

    known = {tensors[name]: replace(tensor, name=tensors[name]) for name, tensor in graph.tensors.items()}
    ends = ([tensors[name] for name in group] for group in (graph.inputs, graph.outputs))
    return Graph(known, *ends, [node(one) for one in graph.nodes])


def memory_in_order(manifest: Manifest) -> list[tuple[int, ...]]:
    """List for each kernel's arguments the numbers of their memory, counted as it first appears."""
    memory_of, numbers = manifest.memory_of(), dict[Any, int]()
    return [
        tuple(numbers.setdefault(memory_of[one.source], len(numbers)) for one in step.arguments)
        for step in manifest.steps
    ]


@settings(max_examples=40)
@given(tensors=names, nodes=names)
@example(tensors=["x", "layer0.bias", "layer0.weights", "y"], nodes=["layer0", "layer1", "layer2", "n"])
@example(tensors=["buffer 0", "buffer 1", "buffer 2", "gpu.scratch_0"], nodes=["buffer 0", "buffer 1", "tensor", "n"])
def test_memory_does_not_depend_on_names(tensors: list[str], nodes: list[str], tmp_path_factory: Any) -> None:
    device = pocl()
    graph, choices = chain_of(device, DEPTH, 5, 64)
    strange = renamed(
        graph,
        dict(zip(graph.tensors, tensors, strict=True)),
        {node.name: name for node, name in zip(graph.nodes, nodes, strict=False)},
    )
    strange.validate()
    target, facts = target_for(device.facts()), device.facts()
    plain, built = package(graph, choices, target, facts), package(strange, choices, target, facts)
    assert memory_in_order(built.manifest) == memory_in_order(plain.manifest)
    assert built.manifest.reads() == plain.manifest.reads()
    assert list(built.manifest.memory_words().values()) == list(plain.manifest.memory_words().values())
    path = tmp_path_factory.mktemp("named") / "m.coexec"
    built.write(path)
    again = Package.read(path)
    assert again.manifest == built.manifest
    assert all(np.array_equal(again.constants[source], array) for source, array in built.constants.items())


def two_layers(first_node: str, middle: str, x: str = "x", y: str = "y") -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    constants = [rng.standard_normal((8, 8), np.float32), rng.standard_normal(8, np.float32)]
    nodes = [
        helper.make_node("Gemm", [x, "w", "b"], [middle], name=first_node),
        helper.make_node("Gemm", [middle, "w", "b"], [y], name="n2"),
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 8]) for name in (x, y)]
    initializers = [numpy_helper.from_array(array, name) for array, name in zip(constants, "wb", strict=True)]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("middle", ["fc.out", "fc.bias", "fc.weights"])
@pytest.mark.parametrize("split", slow_except(["cpu", "gpu", 0.5], 2))
def test_every_run_is_right_where_a_tensor_is_called_like_a_constant(middle: str, split: Any) -> None:
    model = two_layers("fc", middle)
    x = np.random.default_rng(1).standard_normal((4, 8), np.float32)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    module = tvm_coexec.build(model, device=pocl(), split=split)
    for _ in range(3):
        np.testing.assert_allclose(module(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["self", "file", "args", "class"])
def test_inputs_and_outputs_may_be_called_like_parameters(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = two_layers("fc", "middle", name, f"{name}_")
    module = tvm_coexec.build(model, device=pocl(), split=0.5)
    x = np.random.default_rng(1).standard_normal((4, 8), np.float32)
    np.testing.assert_array_equal(module(**{name: x}), module(x))
    model = two_layers("fc", "middle", f"{name}_", name)
    tvm_coexec.build(model, device=pocl(), split=0.5).export(tmp_path / "m.coexec")
    assert main(["run", str(tmp_path / "m.coexec"), "--out", str(tmp_path / "y.dat")]) == 0
    assert set(np.load(tmp_path / "y.dat")) == {name}
    assert capsys.readouterr().out.startswith(f"{name}: float32 (4, 8)")
