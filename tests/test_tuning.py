"""Tuning: it resumes without repeating, remembers what failed, and says when it is not done."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import FileFormatError, InputError, MeasurementError
from tvm_coexec.graph import Graph
from tvm_coexec.layers import Hardware, Linear, Opaque, Operand, RowWise
from tvm_coexec.planning.from_profile import planner
from tvm_coexec.prediction.evaluation import Evaluation
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Candidate, Point, PointTimes
from tvm_coexec.rpc.outcomes import DeviceFailedError, Measurement, RefusedError, SessionLostError, WrongError
from tvm_coexec.tuning import tune
from tvm_coexec.tuning.tuner import Tuner, repeats_for, training_points
from tvm_coexec.tuning.tuning import check_layers, run_all_trials
from tvm_coexec.tuning.watch import Watch
from tvm_coexec.tuning.workloads import linear_test_layers, linear_training_layers, vit_base

FACTS = {
    "name": "pocl: test",
    "driver_version": "1",
    "machine": __import__("platform").machine(),
    "cpu_features": ["avx2"],
    "device_type": "cpu",
    "mechanism": "svm",
    "max_group_size": 64,
    "cpu_cores": [1],
    "gpu_cores": [0],
    "compute_units": 1,
}
LAYER = Linear(3, 64, 128, ("bias",))


class FakeSession:
    """Answers as a device would, and counts the points it was asked for."""

    def __init__(
        self, refuses: bool = False, lost: int = 0, fails: int = 0, gone: bool = False, **changed: Any
    ) -> None:
        self.points: list[Point] = []
        self.changed = changed
        self.is_open, self.address = True, "here:9090"
        self.check: Callable[[dict[str, Any]], None] | None = None
        self.refuses, self.lost, self.fails, self.gone = refuses, lost, fails, gone

    def reconnect(self) -> None:
        if self.gone:
            raise MeasurementError("the device does not answer")
        assert self.check is not None
        self.check({**FACTS, **self.changed})

    def measure(self, module: bytes, points: list[Point], **_: object) -> Measurement:
        self.points += points
        if self.lost:
            self.lost -= 1
            raise SessionLostError("the session broke off")
        if self.fails:
            self.fails -= 1
            raise DeviceFailedError("the device cannot be opened")
        if self.refuses and points != [Point(1, 1)]:  # what is harmless
            raise RefusedError("the result is wrong")
        times = [
            PointTimes(p.cpu_units, p.gpu_units, (2.0,) * bool(p.cpu_units), (3.0,) * bool(p.gpu_units), (4.0,))
            for p in points
        ]
        return Measurement(tuple(times), 0.0)


def tuner(session: FakeSession, path: Path) -> Tuner:
    profile = Profile.open(path, FACTS) if path.exists() else Profile.create(path, FACTS)
    return Tuner(session, profile, target_for(FACTS))  # type: ignore[arg-type]


def splits(points: list[Point]) -> set[tuple[int, int]]:
    return {(point.cpu_units, point.gpu_units) for point in points}


def test_an_interrupted_tuning_repeats_nothing(tmp_path: Path) -> None:
    points = training_points(LAYER)
    first, second = FakeSession(), FakeSession()
    start = tuner(first, tmp_path / "p")
    start.measure(start.default_candidate(LAYER), points[: len(points) // 2])
    start.profile.close()
    rest = tuner(second, tmp_path / "p")
    rest.measure(rest.default_candidate(LAYER), points)
    half = len(points) // 2
    assert splits(first.points) == splits(points[:half]) and splits(second.points) == splits(points[half:])
    asked = len(second.points)
    rest.measure(rest.default_candidate(LAYER), points)
    assert len(second.points) == asked


def test_a_candidate_that_failed_is_not_tried_again(tmp_path: Path) -> None:
    session = FakeSession(refuses=True)
    one = tuner(session, tmp_path / "p")
    candidate: Candidate = one.default_candidate(LAYER)
    one.measure(candidate, training_points(LAYER))
    asked = len(session.points)
    one.measure(candidate, training_points(LAYER))
    assert len(session.points) == asked
    assert one.profile.failure(candidate) == "the result is wrong"
    assert list(one.profile.samples()) == []


def test_a_session_that_is_lost_once_is_not_the_candidates_fault(tmp_path: Path) -> None:
    session = FakeSession(lost=1)
    one = tuner(session, tmp_path / "p")
    candidate = one.default_candidate(LAYER)
    one.measure(candidate, training_points(LAYER))
    assert one.profile.failure(candidate) is None
    assert splits(session.points) == splits(training_points(LAYER))


def test_a_device_that_fails_is_never_the_candidates_fault(tmp_path: Path) -> None:
    session = FakeSession(fails=3)
    one = tuner(session, tmp_path / "p")
    candidate = one.default_candidate(LAYER)
    with pytest.raises(MeasurementError, match="the device cannot be opened"):
        one.measure(candidate, training_points(LAYER))
    one.measure(candidate, training_points(LAYER))
    assert one.profile.failure(candidate) is None
    assert len(list(one.profile.samples())) > 0


def test_what_loses_two_sessions_is_not_tried_again(tmp_path: Path) -> None:
    one = tuner(FakeSession(lost=2), tmp_path / "p")
    candidate = one.default_candidate(LAYER)
    one.measure(candidate, training_points(LAYER))
    assert one.profile.failure(candidate) == "the session broke off"


@pytest.mark.parametrize(("error", "is_blamed"), [(RefusedError, False), (WrongError, True)])
def test_a_candidate_is_refused_twice_but_wrong_once(
    error: type[RefusedError], is_blamed: bool, tmp_path: Path
) -> None:
    """A driver whose compiler was killed refuses once, and so does one that was stopped for longer than a wait."""

    errors = [error("what is asked for")]

    class Refusing(FakeSession):
        def measure(self, module: bytes, points: list[Point], **options: object) -> Measurement:
            if points != [Point(1, 1)] and errors:
                raise errors.pop()
            return super().measure(module, points, **options)

    one = tuner(Refusing(), tmp_path / "p")
    candidate = one.default_candidate(LAYER)
    one.measure(candidate, training_points(LAYER))
    assert one.profile.failure(candidate) == ("what is asked for" if is_blamed else None)
    assert bool(list(one.profile.samples())) != is_blamed


class HangingSession(FakeSession):
    """A device that is of no use in a session once a kernel hung in it; all but what is harmless does."""

    def __init__(self, hangs: int) -> None:
        super().__init__()
        self.hangs, self.is_spoilt = hangs, False

    def reconnect(self) -> None:
        super().reconnect()
        self.is_spoilt = False

    def measure(self, module: bytes, points: list[Point], **options: object) -> Measurement:
        if self.is_spoilt:
            raise DeviceFailedError("an earlier kernel hangs")
        if points != [Point(1, 1)] and self.hangs:
            self.hangs -= 1
            self.is_spoilt = True
            raise RefusedError("its kernel hangs")
        return super().measure(module, points, **options)


def test_a_kernel_that_hangs_twice_is_blamed_and_the_tuning_goes_on(tmp_path: Path) -> None:
    one = tuner(HangingSession(hangs=2), tmp_path / "p")
    candidate = one.default_candidate(LAYER)
    one.measure(candidate, training_points(LAYER))
    assert one.profile.failure(candidate) == "its kernel hangs"
    other = one.candidates(LAYER)[1]
    one.measure(other, training_points(LAYER))
    assert one.profile.failure(other) is None and len(list(one.profile.samples())) > 0


def test_a_kernel_that_hangs_once_is_measured(tmp_path: Path) -> None:
    one = tuner(HangingSession(hangs=1), tmp_path / "p")
    candidate = one.default_candidate(LAYER)
    one.measure(candidate, training_points(LAYER))
    assert one.profile.failure(candidate) is None and len(list(one.profile.samples())) > 0


def test_a_device_that_fails_whatever_it_computes_ends_the_tuning_and_blames_nobody(tmp_path: Path) -> None:
    one = tuner(FakeSession(lost=3), tmp_path / "p")
    candidate = one.default_candidate(LAYER)
    with pytest.raises(MeasurementError, match="fails whatever it computes"):
        one.measure(candidate, training_points(LAYER))
    assert one.profile.failure(candidate) is None


def test_another_device_behind_the_same_key_is_refused(tmp_path: Path) -> None:
    one = tuner(FakeSession(lost=1, cpu_model="another"), tmp_path / "p")
    with pytest.raises(FileFormatError, match="belongs to a device with the CPU None, this one's is 'another'"):
        one.measure(one.default_candidate(LAYER), training_points(LAYER))
    assert list(one.profile.samples()) == []


def test_a_device_that_is_gone_ends_the_tuning_and_blames_nobody(tmp_path: Path) -> None:
    one = tuner(FakeSession(lost=1, gone=True), tmp_path / "p")
    candidate = one.default_candidate(LAYER)
    with pytest.raises(MeasurementError, match="does not answer"):
        one.measure(candidate, training_points(LAYER))
    assert one.profile.failure(candidate) is None


def test_a_module_does_not_say_when_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tuner(FakeSession(), tmp_path / "p")
    candidate = one.default_candidate(LAYER)
    now = one.module(candidate)
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert one.module(candidate) == now


def test_candidates_are_the_same_in_every_run(tmp_path: Path) -> None:
    first, second = (tuner(FakeSession(), tmp_path / name) for name in "ab")
    assert first.candidates(LAYER) == second.candidates(LAYER)
    assert first.candidates(LAYER)[0] == first.default_candidate(LAYER)


@pytest.mark.parametrize("layer", [LAYER, Linear(1, 64, 7), RowWise("softmax", 5, 9), Linear(512, 4096, 4096)], ids=str)
def test_points_cover_each_side_alone_and_both(layer: Linear | RowWise) -> None:
    points = training_points(layer)
    assert len(points) == len(set(points))
    assert Point(layer.units, 0, repeats_for(layer)) in points and Point(0, layer.units, repeats_for(layer)) in points
    assert all(0 < point.cpu_units + point.gpu_units <= layer.units for point in points)
    assert any(point.cpu_units and point.gpu_units for point in points) == (layer.units > 1)


def test_no_layer_is_trained_on_that_comparisons_measure() -> None:
    held_out = {(layer.m, layer.k, layer.n) for layer in (*linear_test_layers(), *vit_base())}
    stream = linear_training_layers()
    assert not held_out & {(layer.m, layer.k, layer.n) for layer, _ in zip(stream, range(2000), strict=False)}


def test_what_tuning_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no family 'conv'"):
        tune(tmp_path / "p", families=["conv"])
    with pytest.raises(InputError, match="minutes must be positive"):
        tune(tmp_path / "p", minutes=0)
    for choice in ({"cpu_cores": (0,)}, {"device": "pocl"}):
        with pytest.raises(InputError, match="chosen where their servers are started"):
            tune(tmp_path / "p", tracker="127.0.0.1:9190", key="phone", **choice)
    with pytest.raises(InputError, match="name the device by --key"):
        tune(tmp_path / "p", tracker="127.0.0.1:9190")
    with pytest.raises(InputError, match="name that too, with --tracker"):
        tune(tmp_path / "p", key="phone")
    with (
        Profile.create(tmp_path / "p", FACTS) as profile,
        pytest.raises(
            InputError,
            match=r"was not tuned to the end.*lacks estimates_us and memory_model and noise and overheads",
        ),
    ):
        planner(profile, Hardware())


@pytest.mark.slow
@pytest.mark.one_runtime
def test_who_has_tuned_may_fork_and_open_the_device(tmp_path: Path, device_name: str) -> None:
    code = f"""
import os, tvm_coexec
from tvm_coexec.layers import Linear
tvm_coexec.tune("p", device={device_name!r}, minutes=0.01, layers=[Linear(9, 64, 96)])
forked = os.fork()
if not forked:
    tvm_coexec.open_device({device_name!r}).close()
    os._exit(0)
assert os.waitpid(forked, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.slow
@pytest.mark.one_runtime
def test_a_description_that_somebody_changed_is_damaged(tmp_path: Path, tuned: tuple[Path, list[Evaluation]]) -> None:
    changed = Path(shutil.copytree(tuned[0], tmp_path / "p")) / "profile.json"
    content = json.loads(changed.read_text())
    other_sides = {"alone": {"cpy": 1.0, "gpu": 1.0}, "concurrent": {"cpu": 1.0, "gpu": 1.0}}
    rates = {"weights": other_sides, "activations": other_sides, "cache_bytes": 1}
    for wrong in (
        {"overheads": 5},
        {"overheads": {"nothing": 1}},
        {"estimates_us": []},
        {"memory_model": None},
        {"memory_model": rates},
        {"noise": other_sides},
    ):
        changed.write_text(json.dumps({**content, "planning": {**content["planning"], **wrong}}))
        with pytest.raises(FileFormatError, match="damaged"), Profile.open(changed.parent) as profile:
            planner(profile, Hardware())


@pytest.mark.parametrize("is_over", [False, True])
def test_networks_are_tried_in_turn_and_one_that_cannot_be_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, is_over: bool
) -> None:
    """Where the time is over, each is tried once."""
    tried = []

    class FailingTrialRunner:
        def __init__(self, *_: object) -> None:
            pass

        def run_trials(self, graph: Graph) -> Iterator[SimpleNamespace]:
            for number in range(2 if graph.outputs[0] == "first" else 3):
                tried.append(f"{graph.outputs[0]} {number}")
                yield SimpleNamespace(usual_us=1.0)
            if graph.outputs[0] == "first":
                raise RefusedError("out of memory")

    @contextmanager
    def for_longer(_seconds: float) -> Iterator[None]:
        yield

    monkeypatch.setattr("tvm_coexec.tuning.tuning.TrialRunner", FailingTrialRunner)
    learned = SimpleNamespace(to_json=lambda: {"of": "networks"})
    plans = SimpleNamespace(learn_from_networks=lambda: learned)
    monkeypatch.setattr("tvm_coexec.tuning.tuning.planner", lambda profile, hardware: plans)
    one = tuner(FakeSession(), tmp_path / "p")
    one.profile.describe(planning={"margin": 0.1})
    one.session.for_longer = for_longer  # type: ignore[method-assign, assignment]
    graphs = [Graph({}, [], [name], []) for name in ("first", "second")]
    run_all_trials(one, graphs, FACTS, -math.inf if is_over else math.inf)
    assert tried == ["first 0", "second 0", *(["first 1", "second 1", "second 2"] if not is_over else [])]
    told = "the network of 'first' did not finish its trial runs (out of memory)"
    assert (told in capsys.readouterr().err) != is_over
    assert one.profile.planning == {"margin": 0.1, "in_networks": {"of": "networks"}}


def test_a_layer_that_a_side_has_no_kernels_for_is_named_before_anything_is_measured(tmp_path: Path) -> None:
    session = FakeSession()
    opaque = Opaque("relax.sin", "", (Operand((3, 4), (3, 4)),), Operand((3, 4), (3, 4)))
    with pytest.raises(InputError, match=r"the gpu has no kernels for .*; leave it out"):
        check_layers(tuner(session, tmp_path / "p"), [LAYER, opaque])
    assert not session.points


class DisturbedSession(FakeSession):
    """Is disturbed while the first request is measured, but for the points of one side alone."""

    def measure(self, module: bytes, points: list[Point], **_: object) -> Measurement:
        times_us = (2.0, 9.0) if not self.points else (2.0, 2.1)
        self.points += points
        rounds = [times_us if p.cpu_units and p.gpu_units else (2.0, 2.0) for p in points]
        found = [
            PointTimes(p.cpu_units, p.gpu_units, us * bool(p.cpu_units), us * bool(p.gpu_units), us)
            for p, us in zip(points, rounds, strict=True)
        ]
        return Measurement(tuple(found), 0.0)


def test_points_that_were_disturbed_are_measured_once_more(tmp_path: Path) -> None:
    session = DisturbedSession()
    one = tuner(session, tmp_path / "p")
    alone = [Point(units, 0) for units in range(1, 6)]
    one.measure(one.default_candidate(LAYER), [*alone, Point(1, LAYER.units - 1)])
    assert splits(session.points[18:]) == {(1, LAYER.units - 1)} and len(session.points) == 21
    steady = [sample for sample in one.profile.samples() if sample.other_units]
    assert len(steady) == 2 and all(max(sample.latency_us) == 2.1 for sample in steady)


def test_where_nothing_is_quiet_nothing_is_repeated(tmp_path: Path) -> None:
    session = DisturbedSession()
    one = tuner(session, tmp_path / "p")
    one.measure(one.default_candidate(LAYER), [Point(1, LAYER.units - 1), Point(2, LAYER.units - 2)])
    assert len(session.points) == 6


def test_layers_that_a_slow_device_computes_for_long_are_left_out(tmp_path: Path) -> None:
    class Slow(FakeSession):
        def measure(self, module: bytes, points: list[Point], **_: object) -> Measurement:
            return Measurement((PointTimes(8, 0, (2e5,), (), ()), PointTimes(0, 8, (), (3e5,), ())), 0.0)

    watch, large, small = Watch(Slow(), target_for(FACTS), FACTS), Linear(512, 4096, 4096), Linear(32, 512, 512)  # type: ignore[arg-type]
    assert watch.is_short(large), "nothing is known yet"
    watch.look_once()
    assert watch.is_short(small) and not watch.is_short(large)
