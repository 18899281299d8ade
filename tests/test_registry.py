"""A family of operators comes in by one file and one registration: kernels, splits, checks, predictions, plans."""

from collections.abc import Sequence

import numpy as np
import pytest
from gated import Gated
from small_modules import one_layer

from tvm_coexec import schedules
from tvm_coexec.compiler.packaging import Choice, package
from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import ModelError
from tvm_coexec.graph import Graph, Node, Tensor
from tvm_coexec.layers import Base, Hardware, Linear, layer_from_json, layer_to_json, register
from tvm_coexec.planning.rules import plan_by_rule
from tvm_coexec.planning.split import Overheads
from tvm_coexec.prediction.features import FeatureSet, Halves, describe
from tvm_coexec.prediction.product_features import Processor
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module

LAYER = Gated(5, 133, ("bias", "sigmoid"))


def gated_graph(seed: int = 0) -> Graph:
    """Two linear layers of one input, the first of which gates the second."""
    rng = np.random.default_rng(seed)
    sizes = {"x": 24, "a": 133, "b": 133, "y": 133}
    tensors = {name: Tensor(name, (5, channels)) for name, channels in sizes.items()}
    weights = [{"weights": rng.standard_normal((24, 133), np.float32) / 5} for _ in range(2)]
    params = {name: rng.standard_normal(shape, np.float32) for name, shape in LAYER.parameter_shapes().items()}
    nodes = [
        *(Node(name, Linear(5, 24, 133), "x", None, name, own) for name, own in zip("ab", weights, strict=True)),
        Node("gate", LAYER, "a", None, "y", params, ("b",)),
    ]
    graph = Graph(tensors, ["x"], ["y"], nodes)
    graph.validate()
    return graph


def built(graph: Graph, device: Device, cpu_units: Sequence[int]) -> Module:
    target = target_for(device.facts())
    choices = []
    for node, units in zip(graph.nodes, cpu_units, strict=True):
        family = schedules.family(node.layer)
        variants = [family.default_variant(node.layer, side, target.hardware) for side in ("cpu", "gpu")]
        choices.append(Choice(units, *variants))
    return Module(package(graph, choices, target, device.facts()), device)


def expected(graph: Graph, x: np.ndarray) -> np.ndarray:
    """The result in float64, by numpy alone."""
    a, b = (x.astype(np.float64) @ node.params["weights"] for node in graph.nodes[:2])
    params = graph.nodes[2].params
    return 1 / (1 + np.exp(-((a + params["gain"]) * b + params["bias"])))


def test_a_network_with_it_is_right_at_every_split(device: Device) -> None:
    graph, x = gated_graph(), np.random.default_rng(1).standard_normal((5, 24), np.float32)
    module = built(graph, device, (2, 3, 0))
    for units in range(LAYER.units + 1):
        module.set_splits({"gate": units})
        assert np.abs(module(x) - expected(graph, x)).max() < 1e-5


def test_halves_of_it_are_measured_and_checked(device: Device) -> None:
    module = Module(one_layer(LAYER, device), device)
    assert module.check_step(0, 2, 3) < module.error_bound(0)
    assert module.check_step(0, 0, 1) < module.error_bound(0)


def test_it_is_described_to_predictors() -> None:
    variant = schedules.family(LAYER).default_variant(LAYER, "cpu", Hardware())
    halves = Halves.grid(LAYER, [variant], np.array([1.0, 5.0]), np.array([0.0, 0.0]))
    described = describe(halves, "cpu", Processor(1))
    assert described["flops"].tolist() == pytest.approx([2 * 5 * 133 / 5, 2 * 5 * 133])
    features = FeatureSet.for_halves(halves)
    columns = dict(zip(features.names, features.matrix(described).T.tolist(), strict=True))
    assert columns["kind:gated"] == [1, 1] and columns["gated:tensors"] == [2, 2]
    assert FeatureSet(features.names) == features, "as a predictor is read again"


def test_it_survives_json_and_its_name_is_taken() -> None:
    assert layer_from_json(layer_to_json(LAYER)) == LAYER
    with pytest.raises(ValueError, match="there are layers 'gated' already"):
        register(type("Other", (Base,), {"op": "gated"}))


def test_kernels_are_made_for_one_type_of_numbers() -> None:
    graph, halves = gated_graph(), Linear(5, 24, 133, dtype="float16")
    assert (halves.units, halves.weight_bytes, halves.unit_channels) == (3, 2 * 24 * 133, 64), "a tile has 128 bytes"
    assert layer_from_json(layer_to_json(halves)) == halves
    with pytest.raises(
        ModelError, match="a layer linear computes with float16, but kernels are made for float32 alone"
    ):
        schedules.family(halves)
    graph.nodes[0].layer = halves
    with pytest.raises(ModelError, match=r"node 'a' needs 'x' to be float16, but it is float32"):
        graph.validate()
    facts = {"label": "a device", "mechanism": "svm"}
    with pytest.raises(
        ModelError, match=r"^layer 'a' \(linear\) computes with float16, .* convert the model to that type$"
    ):
        plan_by_rule(graph, 0.5, facts, Hardware(), None, lambda layers: ([], Overheads(0.0)))
    with pytest.raises(ValueError, match="layers compute with float32, float16, int8, not with 'int4'"):
        Linear(5, 24, 133, dtype="int4")


def test_it_is_planned_without_a_profile() -> None:
    facts = {"label": "a device", "mechanism": "svm"}
    plan = plan_by_rule(gated_graph(), 0.5, facts, Hardware(), None, lambda layers: ([], Overheads(0.0)))
    assert [layer.cpu_units for layer in plan.layers] == [2, 2, 2]
