"""The grid of a layer covers every way to divide it, as the planner does."""

import types
from collections.abc import Sequence
from typing import Any

from compare_grid_search import compare, row
from steady_layers import Program, Rounds

from tvm_coexec.layers import AnyLayer, Conv2d, Variant, along_partition_axes
from tvm_coexec.planning.plan import LayerPlan
from tvm_coexec.profile.records import Candidate, Point, PointTimes
from tvm_coexec.rpc.outcomes import Measurement

LAYER = Conv2d(28, 28, 8, 32, 3, padding=1)
CHANNELS, LINES = along_partition_axes(LAYER)


def variant(layer: AnyLayer) -> Variant:
    return Variant.make(layer.axis)


def plan(name: str, layer: AnyLayer, cpu_units: int = 1) -> LayerPlan:
    cpu, gpu = variant(layer) if cpu_units else None, variant(layer) if cpu_units < layer.units else None
    return LayerPlan(name, layer, cpu_units, cpu, gpu, 1.0, 1.0, 2.0, "chosen")


PLANS = types.SimpleNamespace(
    knows=lambda way: True, plan_best_axis=lambda name, layer: plan(name, LINES, 4), plan_layer=plan, plan_split=plan
)


def ask(candidate: Candidate, points: Sequence[Point], **_: Any) -> Measurement:
    """Lines are faster than channels, and best at 3."""
    by_lines = candidate.layer == LINES
    times = [(1.0 if by_lines else 9.0) + abs(3 - point.cpu_units) for point in points]
    return Measurement(
        tuple(PointTimes(one.cpu_units, one.gpu_units, (), (), (us,)) for one, us in zip(points, times, strict=True)),
        1e-7,
    )


def time_programs(programs: dict[Program, Candidate], repeats: int, rounds: int) -> Rounds:
    return Rounds({one: [float(1 + one.cpu_units)] for one in programs}, unsteady=1)


def test_a_convolution_of_one_unit_of_channels_is_divided_by_lines() -> None:
    tuner = types.SimpleNamespace(
        ask=ask,
        default_candidate=lambda way: Candidate(way, variant(way), variant(way)),
        repeats=lambda layer: 3,
    )
    compared = compare(tuner, PLANS, types.SimpleNamespace(time=time_programs), LAYER)  # type: ignore[arg-type]
    result = compared.to_json()
    assert list(result["grid_us"]) == list(range(CHANNELS.units + 1))
    assert list(result["grid_by_lines_us"]) == list(range(LINES.units + 1)) and LINES.units > CHANNELS.units
    assert (result["best_axis"], result["best_split"]) == ("lines", 3)
    assert (result["planned_axis"], result["planned_split"]) == ("lines", 4)
    assert result["planned_us"] == 5.0 and result["best_us"] == 4.0 and result["gpu_us"] == 1.0
    assert f"4/{LINES.units} lines" in row(compared) and "0.20× (unsteady)" in row(compared)
