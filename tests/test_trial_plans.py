"""What trial runs of a network teach the planner, on a device whose times are known."""

import json
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_network_plan import network, planner, planner_of_measured
from test_plan import plans

from tvm_coexec.errors import FileFormatError
from tvm_coexec.layers import AnyLayer, Linear, RowWise, Variant
from tvm_coexec.planning.network import plan_anew, plan_network
from tvm_coexec.planning.plan import Plan
from tvm_coexec.planning.trial_runs import best_plan
from tvm_coexec.prediction.surroundings import Surroundings
from tvm_coexec.profile.records import NetworkTimes
from tvm_coexec.profile.trial_runs import TrialRun, fingerprint

GRAPH = network(*[Linear(197, 768, 768)] * 4, Linear(50, 768, 512))
DAYS = count()

times_us = st.lists(st.floats(0.1, 1e6), max_size=3).map(tuple)


@st.composite
def trial_runs(draw):
    plan = draw(plans())
    halves_us = tuple((draw(times_us), draw(times_us)) for _ in plan.layers)
    return TrialRun(draw(st.text()), plan, NetworkTimes(draw(times_us.filter(bool)), halves_us), draw(st.text()))


@given(trial_runs())
def test_a_trial_run_survives_json(trial_run: TrialRun) -> None:
    values = json.loads(json.dumps(trial_run.to_json()))
    assert TrialRun.from_json(trial_run.network, trial_run.ran_at, values) == trial_run


def tried(plan: Plan, cpu: float, gpu: float, total_us: float = 5000.0, when: str | None = None) -> TrialRun:
    """Every half took so many times as long as planned; each at a time of its own, if none is given."""
    halves_us = tuple(
        ((cpu * layer.cpu_us,) * 3 if layer.cpu else (), (gpu * layer.gpu_us,) * 3 if layer.gpu else ())
        for layer in plan.layers
    )
    times = NetworkTimes((0.9 * total_us, total_us, 9 * total_us), halves_us)
    return TrialRun(fingerprint(GRAPH), plan, times, when or f"noon, {next(DAYS)}")


def kernels_of(plan: Plan) -> set[tuple[str, AnyLayer, Variant]]:
    return {(side, one.layer, getattr(one, side)) for one in plan.layers for side in ("cpu", "gpu")}


def gpu_share(plan: Plan) -> float:
    return sum(layer.gpu_units for layer in plan.layers) / sum(layer.layer.units for layer in plan.layers)


def test_a_side_that_took_longer_in_the_network_gets_less_of_it() -> None:
    first = plan_anew(GRAPH, planner(), "device", "svm")
    assert plan_anew(GRAPH, planner(), "device", "svm", [tried(first, 1.0, 1.0)]).layers == first.layers
    second = plan_anew(GRAPH, planner(), "device", "svm", [tried(first, 1.0, 2.0)])
    speed = gpu_share(first) / (1 - gpu_share(first)) / 2  # the GPU's, that of the CPU being 1
    assert gpu_share(second) == pytest.approx(speed / (1 + speed), abs=0.06)
    before_us, after_us = (
        np.mean([one.gpu_us / one.gpu_units for one in p.layers if one.gpu]) for p in (first, second)
    )
    assert after_us > 1.7 * before_us


def test_what_took_longer_than_its_like_is_known_by_its_layer() -> None:
    first = plan_anew(GRAPH, planner(), "device", "svm")
    run = tried(first, 1.0, 1.0)
    *usual, (cpu_us, gpu_us) = run.times.halves_us
    run = replace(run, times=replace(run.times, halves_us=(*usual, (tuple(3 * np.array(cpu_us)), gpu_us))))
    around = planner().learning_from([run]).surroundings
    common, odd = first.layers[0], first.layers[-1]
    assert odd.cpu is not None and odd.gpu is not None and common.cpu is not None
    assert around.factors("cpu", common.layer, [common.cpu]) == pytest.approx([1.0], rel=0.02)
    assert 1.7 < around.factors("cpu", odd.layer, [odd.cpu])[0] < 3.0
    assert around.factors("gpu", odd.layer, [odd.gpu]) == pytest.approx([1.0], rel=0.02)


def test_a_machine_that_was_busy_once_is_not_believed_for_ever() -> None:
    first = plan_anew(GRAPH, planner(), "device", "svm")
    busy, quiet = tried(first, 7.0, 1.0), tried(first, 1.1, 1.0)
    alone, after = (planner().learning_from(runs).surroundings for runs in ([quiet], [busy, quiet, busy, busy]))
    variant = first.layers[0].cpu
    assert variant is not None
    for layer in first.layers:
        assert after.factors("cpu", layer.layer, [variant]) == pytest.approx(
            alone.factors("cpu", layer.layer, [variant])
        )


def test_halves_of_no_time_teach_nothing() -> None:
    first = plan_anew(GRAPH, planner(), "device", "svm")
    around = planner().learning_from([tried(first, 0.0, 1.0)]).surroundings
    assert set(around.usual) == {"gpu"}


def test_layers_that_only_estimates_know_learn_too() -> None:
    norm = RowWise("softmax", 4096, 256)
    graph = network(norm)
    first = plan_anew(graph, planner(), "device", "svm")
    halves_us = tuple(((3 * one.cpu_us,), (one.gpu_us,) if one.gpu else ()) for one in first.layers)
    run = TrialRun(fingerprint(graph), first, NetworkTimes((1.0,), halves_us), "noon")
    second = plan_anew(graph, planner(), "device", "svm", [run])
    assert 0 < second.layers[0].cpu_units < first.layers[0].cpu_units


def test_a_network_of_one_layer_learns() -> None:
    graph = network(Linear(197, 768, 3072))
    first = plan_anew(graph, planner(), "device", "svm")
    halves_us = tuple(((one.cpu_us,), (2 * one.gpu_us,)) for one in first.layers)
    run = TrialRun(fingerprint(graph), first, NetworkTimes((1.0,), halves_us), "noon")
    second = plan_anew(graph, planner(), "device", "svm", [run])
    assert second.layers[0].gpu_units < 0.8 * first.layers[0].gpu_units


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values["halves_us"].pop(),
        lambda values: values.update(latency_us=[]),
        lambda values: values["halves_us"][0][0].append("soon"),
        lambda values: values["plan"].pop("layers"),
    ],
)
def test_a_damaged_trial_run_is_refused(damage) -> None:
    values = tried(plan_anew(GRAPH, planner(), "device", "svm"), 1.0, 1.0).to_json()
    values = json.loads(json.dumps(values))
    damage(values)
    with pytest.raises((ValueError, FileFormatError)):
        TrialRun.from_json("a network", "noon", values)


def test_kernels_that_did_not_run_are_tried_where_they_may_be_better() -> None:
    first = plan_anew(GRAPH, planner_of_measured(GRAPH), "device", "svm")
    run = tried(first, 1.0, 1.0)
    hopeful = plan_anew(GRAPH, planner_of_measured(GRAPH), "device", "svm", [run], untried=0.5)
    assert not kernels_of(first) & kernels_of(hopeful)
    sober = plan_anew(GRAPH, planner_of_measured(GRAPH), "device", "svm", [run, tried(hopeful, 2.0, 2.0)])
    assert kernels_of(sober) == kernels_of(first)


def test_kernels_that_were_never_measured_are_not_hoped_for() -> None:
    first = plan_anew(GRAPH, planner_of_measured(GRAPH), "device", "svm")
    known = {(side, layer): frozenset({variant}) for side, layer, variant in kernels_of(first)}
    narrow = replace(planner_of_measured(GRAPH), measured=known)
    assert kernels_of(plan_anew(GRAPH, narrow, "device", "svm", [tried(first, 1.0, 1.0)], untried=0.5)) == (
        kernels_of(first)
    )


def test_kernels_are_compared_where_they_ran_turn_by_turn() -> None:
    first = plan_anew(GRAPH, planner_of_measured(GRAPH), "device", "svm")
    quiet = tried(first, 1.0, 1.0)
    second = plan_anew(GRAPH, planner_of_measured(GRAPH), "device", "svm", [quiet], untried=0.5)  # expects half
    while_busy = [tried(first, 3.0, 3.0, when="busy"), tried(second, 5.0, 5.0, when="busy")]
    third = plan_anew(GRAPH, planner_of_measured(GRAPH), "device", "svm", [quiet, *while_busy], untried=0.5)
    assert not kernels_of(third) & (kernels_of(first) | kernels_of(second))
    later = [tried(second, 10.0, 10.0, when="busier"), tried(third, 10.0, 10.0, when="busier")]
    around = planner_of_measured(GRAPH).learning_from([quiet, *while_busy, *later]).surroundings
    for layers in zip(first.layers, second.layers, third.layers, strict=True):
        for side in ("cpu", "gpu"):
            known = around.factors(side, layers[0].layer, [getattr(layer, side) for layer in layers])
            assert known[0] == pytest.approx(1.0, abs=0.15), "by itself"
            assert 0.8 < known[1] / known[0] < 0.97, "5 sixths: not 2.5, as against the quiet run"
            assert 0.6 < known[2] / known[0] < 0.9, "by way of the second"


def test_a_split_that_is_slower_than_expected_is_told_from_a_slower_machine() -> None:
    first = plan_anew(GRAPH, planner(), "device", "svm")
    uneven = replace(
        first, layers=tuple(replace(one, cpu_units=one.cpu_units + 3, cpu_us=1.4 * one.cpu_us) for one in first.layers)
    )
    runs = [
        tried(first, 1.0, 1.0),
        tried(first, 1.0, 1.0, when="once"),
        tried(uneven, 1.0, 1.0, when="once"),
    ]
    layer, variant = first.layers[0].layer, first.layers[0].cpu
    assert variant is not None
    around = planner().learning_from(runs).surroundings
    expected_us = (
        planner()
        .for_network(GRAPH)
        .expect_us("cpu", layer, variant, uneven.layers[0].cpu_units, uneven.layers[0].gpu_units)
    )
    assert uneven.layers[0].cpu_us > 1.05 * expected_us
    assert around.factors("cpu", layer, [variant])[0] > 1.02


OTHER = network(*[Linear(150, 512, 1024)] * 3)


def test_a_network_that_never_ran_is_expected_to_fare_as_others_did() -> None:
    first = plan_anew(GRAPH, planner(), "device", "svm")
    second = plan_anew(GRAPH, planner(), "device", "svm", [tried(first, 1.5, 1.0)])
    runs = [tried(first, 1.5, 1.0), tried(second, 1.0, 1.0, 1.25 * second.total_us)]
    some = replace(planner(), trial_runs={"some": runs[:1]}).learn_from_networks()
    layer = OTHER.nodes[0].layer
    variant = planner().plan_layer("n0", layer).cpu
    assert variant is not None
    assert 1.2 < some.factors("cpu", layer, [variant])[0] < 1.5
    assert some.factors("gpu", layer, [variant])[0] == pytest.approx(1.0, abs=0.02)
    many = {str(number): runs for number in range(20)}
    known = replace(planner(), trial_runs=many).learn_from_networks()
    assert known.stretch.log_factor == pytest.approx(np.log(1.25), rel=0.05)
    assert known.stretch.high < some.stretch.high
    plain, informed = (
        plan_network(OTHER, one, "device", "svm") for one in (planner(), replace(planner(), elsewhere=some))
    )
    assert gpu_share(informed) > gpu_share(plain)
    assert informed.total_us > 1.05 * plain.total_us
    assert plain.interval_us[0] <= plain.total_us and informed.interval_us[1] > 1.1 * informed.total_us


def test_what_networks_teach_survives_json() -> None:
    first = plan_anew(GRAPH, planner(), "device", "svm")
    known = replace(planner(), trial_runs={"some": [tried(first, 1.5, 1.0)]}).learn_from_networks()
    assert Surroundings.from_json(json.loads(json.dumps(known.to_json()))) == known


def test_nothing_is_learned_from_nothing() -> None:
    around = Surroundings.of([], planner().expect_us)
    layer = GRAPH.nodes[0].layer
    variant = planner().plan_layer("n0", layer).cpu
    assert variant is not None
    assert around.factors("cpu", layer, [variant, variant]).tolist() == [1.0, 1.0]


def test_the_plan_of_a_tried_network_is_the_last_one_that_ran_and_takes_the_median_of_its_runs() -> None:
    first = plan_anew(GRAPH, planner(), "device", "svm")
    best = plan_anew(GRAPH, planner(), "device", "svm", [tried(first, 1.0, 2.0)])
    events = replace(best, mechanism="event")
    runs = [tried(first, 1.0, 2.0, 100.0), tried(best, 1.0, 2.0, 4000.0), tried(best, 1.44, 2.88, 5760.0)]
    known = replace(planner(), trial_runs={fingerprint(GRAPH): [*runs, tried(events, 1.0, 1.0)]})
    plan = plan_network(GRAPH, known, "device", "svm")
    assert (plan.total_us, plan.tried) == (pytest.approx(4800.0), True)
    low_us, high_us = plan.interval_us
    assert 4000.0 <= low_us < 4800.0 <= high_us
    for ran, planned in zip(plan.layers, best.layers, strict=True):
        cpu_us, gpu_us = 1.2 * planned.cpu_us, 2.4 * planned.gpu_us
        total_us = planned.total_us + max(cpu_us, gpu_us) - max(planned.cpu_us, planned.gpu_us)
        expected = {"cpu_us": cpu_us, "gpu_us": gpu_us, "total_us": total_us}
        expected |= {"cpu_interval_us": (cpu_us, cpu_us), "gpu_interval_us": (gpu_us, gpu_us)}
        assert ran == replace(planned, **{name: pytest.approx(us) for name, us in expected.items()})
    assert str(plan).splitlines()[len(plan.layers) + 2] == "5 layers, ran in 4.8 ms (4.3 to 43.2)"
    other = network(*[Linear(197, 768, 768)] * 3)
    assert not plan_network(other, known, "device", "svm").tried


def test_a_tried_plan_takes_what_it_would_at_the_usual_speed_of_the_machine() -> None:
    first = plan_anew(GRAPH, planner(), "device", "svm")
    second = plan_anew(GRAPH, planner(), "device", "svm", [tried(first, 1.0, 2.0)])
    alone, fast, slow = tried(first, 1, 1, 1000.0), tried(first, 2, 2, 2000.0), tried(second, 6, 6, 2700.0)
    concurrent = tried(second, 4, 4, 1800.0, when=fast.ran_at)
    plan = best_plan([alone, fast, concurrent, slow])
    assert plan.total_us == pytest.approx(1800.0), "the machine was half as fast beside the first, and a third at last"
    assert plan.layers[0].cpu_us == pytest.approx(4 * second.layers[0].cpu_us)
    unlinked = tried(first, 1, 1, 100.0)
    assert best_plan([unlinked, concurrent, slow]).total_us == pytest.approx((1800.0 * 2700.0) ** 0.5)


def test_networks_are_told_apart_by_their_layers_and_by_what_joins_them() -> None:
    again = network(*[Linear(197, 768, 768)] * 4, Linear(50, 768, 512))
    again.nodes[0].params["weights"] = np.ones((768, 768), np.float32)
    assert fingerprint(again) == fingerprint(GRAPH)
    again.nodes[2].input = "t0"
    assert fingerprint(again) != fingerprint(GRAPH)
    assert fingerprint(network(*[Linear(197, 768, 768)] * 4, Linear(50, 768, 513))) != fingerprint(GRAPH)
