"""Trial runs on a device that only pretends: better plans win, the last stored run is by the best, runs are resumed."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_network_plan import network, planner, planner_of_measured
from test_tuning import FACTS

from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import MeasurementError
from tvm_coexec.layers import Linear, Variant
from tvm_coexec.module.package import read_sections
from tvm_coexec.planning.plan import Plan
from tvm_coexec.planning.split import Planner
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import NetworkTimes
from tvm_coexec.profile.trial_runs import TrialRun, fingerprint
from tvm_coexec.rpc.outcomes import RefusedError, SessionLostError
from tvm_coexec.tuning.trial_runs import MOST_RUNS, TrialRunner

GRAPH = network(*[Linear(48, 256, 256)] * 3)
GRAPH.outputs.append("t2")
for node in GRAPH.nodes:
    node.params = {name: np.ones(shape, np.float32) for name, shape in node.layer.parameter_shapes().items()}
TARGET = target_for(FACTS)

Times = Callable[[Plan], tuple[float, list[tuple[float, float]]]]
"""Gives the time of a whole run, and of each layer's CPU half and GPU half; 0 where there is none."""


class FakeSession:
    """Runs plans as ``times`` says."""

    def __init__(self, times: Times) -> None:
        self.times = times
        self.asked: list[list[Plan]] = []
        self.canaries: list[bytes | None] = []

    def run_trials(
        self, modules: Sequence[bytes], canary: bytes | None, *, rounds: int, repeats: int, timelines: int
    ) -> list[NetworkTimes]:
        assert canary not in modules
        self.canaries.append(canary)
        self.asked.append([plan_in(module) for module in modules])
        assert max(map(len, modules)) < 4 * 256 * 256, "weights are not sent"
        answers = []
        for plan in self.asked[-1]:
            run_us, halves_us = self.times(plan)
            count = rounds * timelines
            halves = tuple(((cpu,) * count if cpu else (), (gpu,) * count if gpu else ()) for cpu, gpu in halves_us)
            answers.append(NetworkTimes((run_us,) * rounds * repeats, halves))
        return answers


def plan_in(module: bytes) -> Plan:
    return Plan.from_json(json.loads(bytes(read_sections(memoryview(module), "a module")["description"]))["plan"])


def slow_gpu(plan: Plan) -> tuple[float, list[tuple[float, float]]]:
    """A unit takes 10 us on the CPU and 30 us on the GPU, whatever was planned, and the sides wait for each other."""
    halves_us = [(10.0 * layer.cpu_units, 30.0 * layer.gpu_units) for layer in plan.layers]
    return sum(map(max, halves_us)), halves_us


@pytest.fixture
def profile(tmp_path: Path) -> Iterator[Profile]:
    with Profile.create(tmp_path / "p", {**FACTS, "label": "pretended"}) as opened:
        yield opened


def run_trials_with(
    session: Any, profile: Profile, mechanism: str = "svm", plans: Planner | None = None
) -> list[TrialRun]:
    runner = TrialRunner(plans or planner(), session, profile, TARGET, {**profile.facts, "mechanism": mechanism})
    runs = list(runner.run_trials(GRAPH))
    stored = profile.trial_runs()[fingerprint(GRAPH)]
    assert runs[-1] == stored[-1] and len(runs) <= MOST_RUNS
    return stored


def test_plans_learn_until_nothing_better_comes_and_the_last_run_is_by_the_best(profile: Profile) -> None:
    session = FakeSession(slow_gpu)
    runs = run_trials_with(session, profile)
    first, *duels, last = session.asked
    assert len(first) == len(last) == 1 and all(len(duel) == 2 for duel in duels) and duels
    assert last[0].layers == runs[-1].plan.layers
    assert runs[-1].usual_us == min(run.usual_us for run in runs) < runs[0].usual_us
    assert sum(layer.gpu_units for layer in runs[-1].plan.layers) < sum(layer.gpu_units for layer in first[0].layers)


def test_a_session_that_is_lost_once_costs_no_plan(profile: Profile) -> None:
    class Losing(FakeSession):
        def run_trials(self, *modules: Any, **options: Any) -> list[NetworkTimes]:
            answers = super().run_trials(*modules, **options)
            if len(self.asked) % 2:
                raise SessionLostError("the link is down")
            return answers

    session = Losing(slow_gpu)
    runs = run_trials_with(session, profile)
    assert session.asked[::2] == session.asked[1::2] and len(session.asked) > 4
    assert runs[-1].usual_us < runs[0].usual_us


def test_one_that_is_lost_twice_is_told(profile: Profile) -> None:
    class Lost(FakeSession):
        def run_trials(self, *modules: Any, **options: Any) -> list[NetworkTimes]:
            raise SessionLostError("the kernel hangs")

    with pytest.raises(SessionLostError, match="the kernel hangs"):
        run_trials_with(Lost(slow_gpu), profile)


@pytest.mark.parametrize("is_bench", [True, False])
def test_only_a_bench_device_is_watched_by_a_canary(is_bench: bool, tmp_path: Path) -> None:
    session = FakeSession(slow_gpu)
    with Profile.create(tmp_path / "p", {**FACTS, "label": "pretended", "is_bench": is_bench}) as profile:
        run_trials_with(session, profile)
    assert session.canaries and all((canary is not None) == is_bench for canary in session.canaries)


def test_a_kernel_that_is_better_in_the_network_than_alone_is_found(profile: Profile) -> None:
    usual: list[Variant | None] = []

    def better_than_usual(plan: Plan) -> tuple[float, list[tuple[float, float]]]:
        usual[:] = usual or [plan.layers[0].cpu]
        halves_us = [
            (layer.cpu_units * (10.0 if layer.cpu == usual[0] else 6.0), layer.gpu_units * 30.0)
            for layer in plan.layers
        ]
        return sum(map(max, halves_us)), halves_us

    session = FakeSession(better_than_usual)
    runs = run_trials_with(session, profile, plans=planner_of_measured(GRAPH))
    assert all(layer.cpu not in (None, usual[0]) for layer in runs[-1].plan.layers)
    assert len(session.asked) <= MOST_RUNS
    moments = [run.ran_at for run in runs]
    assert [moments.count(moment) for moment in dict.fromkeys(moments)] == [len(plans) for plans in session.asked]


def test_a_worse_plan_does_not_win(profile: Profile) -> None:
    seen: list[Plan] = []

    def ever_slower(plan: Plan) -> tuple[float, list[tuple[float, float]]]:
        seen.extend([plan] if plan.layers not in [one.layers for one in seen] else [])
        position = [one.layers for one in seen].index(plan.layers)
        return 100.0 * (1 + position), slow_gpu(plan)[1]

    runs = run_trials_with(FakeSession(ever_slower), profile)
    assert len(seen) > 1
    assert runs[-1].plan.layers == seen[0].layers and runs[-1].usual_us == 100.0


def test_a_burst_of_other_work_does_not_decide(profile: Profile) -> None:
    class Disturbed(FakeSession):
        def run_trials(
            self, modules: Sequence[bytes], canary: bytes | None, *, rounds: int, repeats: int, timelines: int
        ) -> list[NetworkTimes]:
            answers = super().run_trials(modules, canary, rounds=rounds, repeats=repeats, timelines=timelines)
            if len(answers) == 1:
                return answers
            before, new = (np.array(answer.latency_us) for answer in answers)
            new[: len(new) // rounds * 3] *= 50  # of its eight turns
            return [replace(one, latency_us=tuple(us)) for one, us in zip(answers, (before, new), strict=True)]

    disturbed = run_trials_with(Disturbed(slow_gpu), profile)
    assert disturbed[-1].plan.layers != disturbed[0].plan.layers


def test_a_second_trial_run_goes_on_from_the_first(profile: Profile) -> None:
    before = run_trials_with(FakeSession(slow_gpu), profile)
    session = FakeSession(slow_gpu)
    after = run_trials_with(session, profile)
    assert after[: len(before)] == before
    assert session.asked[0][0].layers == before[-1].plan.layers, "the best so far takes part"


def test_runs_by_another_mechanism_are_left_alone(profile: Profile) -> None:
    run_trials_with(FakeSession(slow_gpu), profile)
    session = FakeSession(slow_gpu)
    runs = run_trials_with(session, profile, mechanism="event")
    assert len(session.asked[0]) == 1
    assert {run.plan.mechanism for run in runs} == {"svm", "event"} and runs[-1].plan.mechanism == "event"


def test_what_was_tried_before_a_failure_stays(profile: Profile) -> None:
    class Failing(FakeSession):
        def run_trials(self, modules: Sequence[bytes], canary: bytes, **settings: int) -> Any:
            if self.asked:
                raise RefusedError("out of memory")
            return super().run_trials(modules, canary, **settings)

    with pytest.raises(MeasurementError, match="out of memory"):
        run_trials_with(Failing(slow_gpu), profile)
    assert len(profile.trial_runs()[fingerprint(GRAPH)]) == 1
