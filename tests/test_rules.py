"""The rules by which a model is divided: a plan from a file is followed, and refused where it does not fit."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from test_network_plan import network

from tvm_coexec.errors import InputError
from tvm_coexec.graph import Graph
from tvm_coexec.layers import AnyLayer, Hardware, Linear
from tvm_coexec.planning.plan import Plan
from tvm_coexec.planning.rules import Split, plan_by_rule
from tvm_coexec.planning.split import Overheads
from tvm_coexec.profile.records import Sample

LAYERS = (Linear(9, 64, 96), Linear(9, 96, 160, ("bias",)))


def nothing_measured(layers: Sequence[AnyLayer]) -> tuple[Sequence[Sample], Overheads]:
    raise AssertionError("nothing is to be measured")


def planned(graph: Graph, split: Split, mechanism: str = "svm", label: str = "a device") -> Plan:
    facts = {"label": label, "mechanism": mechanism}
    return plan_by_rule(graph, split, facts, Hardware(), None, nothing_measured)


def test_a_plan_from_a_file_is_followed(tmp_path: Path) -> None:
    plan = planned(network(*LAYERS), 0.5)
    plan.write(tmp_path / "plan.json")
    again = planned(network(*LAYERS), Plan.read(tmp_path / "plan.json"), label="another device")
    assert again.layers == plan.layers and again.syncs == plan.syncs
    assert [layer.cpu_units for layer in again.layers] == [2, 2]
    assert again.device == "another device"


def test_a_plan_that_does_not_fit_is_refused() -> None:
    plan = planned(network(*LAYERS), 0.5)
    with pytest.raises(InputError, match="for the mechanism 'svm', the device has 'event'"):
        planned(network(*LAYERS), plan, mechanism="event")
    with pytest.raises(InputError, match="the plan has 2 layers, the model 1"):
        planned(network(LAYERS[0]), plan)
    with pytest.raises(InputError, match="the plan's layer 'n1' is not the model's 'n1'"):
        planned(network(LAYERS[0], Linear(9, 96, 64)), plan)
