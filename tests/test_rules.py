"""The rules by which a model is divided: a plan from a file is followed, and refused where it does not fit."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_device import HARDWARE
from test_network_plan import network, planner

from tvm_coexec import schedules
from tvm_coexec.errors import InputError
from tvm_coexec.graph import Graph
from tvm_coexec.layers import AnyLayer, Conv2d, Hardware, Linear, Variant
from tvm_coexec.planning.division import Overheads
from tvm_coexec.planning.plan import Plan
from tvm_coexec.planning.rules import Split, plan_by_rule
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


@pytest.mark.parametrize("side", ["cpu", "gpu"])
@pytest.mark.parametrize(
    "change",
    [{"rows": 1000}, {"implementation": "magic"}, {"colour": 1}, {"order": 7}, {"unroll": 60_000}, {"rows": 1}],
    ids=str,
)
def test_a_plan_with_a_kernel_that_there_is_none_of_is_refused(change: dict[str, Any], side: str) -> None:
    """Some, TVM compiles for hours; others end in errors of its own."""
    plan = planned(network(*LAYERS), 0.5)
    variant = getattr(plan.layers[0], side)
    edited = Variant.from_json(variant.to_json() | change)
    layers = (replace(plan.layers[0], **{side: edited}), *plan.layers[1:])
    told = rf"the plan's variant .* of layer '{plan.layers[0].name}' is none that the {side} of this device has; plan"
    with pytest.raises(InputError, match=told):
        planned(network(*LAYERS), replace(plan, layers=layers))


@pytest.mark.parametrize(("failed", "cpu_units"), [(1, 4), (None, 8)], ids=["the first", "all"])
def test_what_a_caller_divides_avoids_kernels_that_failed(failed: int | None, cpu_units: int) -> None:
    convolution = Conv2d(28, 28, 64, 256, 3, padding=1)
    variants = schedules.family(convolution).variants(convolution, "gpu", HARDWARE)
    known = replace(planner(), failed={("gpu", convolution): frozenset(variants[:failed])})
    facts = {"label": "a device", "mechanism": "svm"}
    (layer,) = plan_by_rule(network(convolution), 0.5, facts, HARDWARE, known, nothing_measured).layers
    assert layer.cpu_units == cpu_units and layer.gpu not in variants[:failed]
    assert failed or layer.reason == "cpu alone: the gpu's kernels failed when they were measured"
