"""A tuning's time: when it is over, what it went to, and how a slow device is spared."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_calibration import ReadingSession
from test_tuning import FACTS, FakeSession, tuner

from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import MeasurementError
from tvm_coexec.layers import Linear
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Point, PointTimes
from tvm_coexec.rpc.outcomes import DeviceFailedError, Measurement
from tvm_coexec.tuning import budget
from tvm_coexec.tuning.budget import Budget
from tvm_coexec.tuning.reading import measure_reads
from tvm_coexec.tuning.tuner import Tuner
from tvm_coexec.tuning.tuning import _is_over, _measure
from tvm_coexec.tuning.watch import Watch

LAYER = Linear(64, 512, 512, ("bias",))


class Clock:
    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    return clock


def test_nothing_begins_that_exceeds_the_time_by_more_than_it_would_leave(clock: Clock) -> None:
    one = Budget(1.0)
    assert (one.until, one.left_s) == (160.0, 60.0)
    clock.now_s += 50.0
    assert [one.is_over(next_s) for next_s in (0.0, 19.0, 21.0)] == [False, False, True]
    clock.now_s += 10.0
    assert one.is_over() and one.left_s == 0.0


def test_a_time_that_is_exceeded_is_told_with_what_it_went_to(clock: Clock) -> None:
    one = Budget(1.0)
    for what, seconds in (("calibration", 5.0), ("layers", 58.0)):
        with one.spend(what):
            clock.now_s += seconds
    assert one.summary() == "1.1 of 1 minutes"
    with one.spend("layers"):
        clock.now_s += 57.0
    assert one.summary().startswith("2 of 1 minutes: this device needs") and "(calibration 5 s, layers 115 s)" in (
        one.summary()
    )


class SlowSession(FakeSession):
    """Takes a second for the canary's layer, and as long for each multiplication of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[Point]] = []

    def measure(self, module: bytes, points: list[Point], **_: object) -> Measurement:
        self.calls.append(points)
        times = [
            PointTimes(p.cpu_units, p.gpu_units, (1e6,) * bool(p.cpu_units), (1e6,) * bool(p.gpu_units), (1e6,))
            for p in points
        ]
        return Measurement(tuple(times), 1e-7)


def slow_tuner(path: Path) -> tuple[SlowSession, Tuner]:
    session: Any = SlowSession()
    watch = Watch(session, target_for(FACTS), FACTS)
    watch.look_once()
    session.calls.clear()
    return session, Tuner(session, Profile.create(path, FACTS), target_for(FACTS), watch=watch)


def test_a_slow_device_repeats_less_in_fewer_rounds(tmp_path: Path) -> None:
    _, slow = slow_tuner(tmp_path / "slow")
    usual = tuner(FakeSession(), tmp_path / "usual")
    assert slow.repeats(LAYER) < usual.repeats(LAYER) == usual.points(LAYER)[0].repeats
    assert {(point.cpu_units, point.gpu_units) for point in slow.points(LAYER)} == {
        (point.cpu_units, point.gpu_units) for point in usual.points(LAYER)
    }


def test_a_slow_device_is_asked_in_calls_that_its_session_outlasts(tmp_path: Path) -> None:
    session, one = slow_tuner(tmp_path / "p")
    points = [Point(LAYER.units, 0, 3), Point(0, LAYER.units, 3), *(Point(1, 1, 3) for _ in range(20))]
    measured = one.ask(one.default_candidate(LAYER), points)
    assert [point for call in session.calls for point in call] == points and len(measured.points) == len(points)
    assert measured.max_rel_error == 1e-7
    longest_s = max(sum(2 * 5 * max(p.cpu_units, p.gpu_units) / LAYER.units for p in call) for call in session.calls)
    assert len(session.calls) > 1 and longest_s < 60.0


def test_where_time_is_short_caches_are_looked_at_once(tmp_path: Path) -> None:
    class Counting(ReadingSession):
        repeats = 0

        def measure(self, module: bytes, points: Any, **how: object) -> Measurement:
            self.repeats += sum(point.repeats for point in points)
            return super().measure(module, points, **how)

    session = Counting()
    found = measure_reads(tuner(session, tmp_path / "p"), until=-np.inf)
    assert session.repeats == 2 * 3 and len(found["cpu"].amount_bytes) == 2
    assert found["cpu"].concurrent[0] == pytest.approx(20e3, rel=0.01)


def test_what_takes_a_share_of_a_short_tuning_is_not_short() -> None:
    session: Any = FakeSession()  # takes the canary 3 us
    watches = [Watch(session, target_for(FACTS), FACTS, Budget(minutes)) for minutes in (0.001, 10.0)]
    for watch in watches:
        watch.look_once()
    assert [watch.is_short(Linear(512, 4096, 4096)) for watch in watches] == [False, True]
    assert all(watch.is_short(Linear(8, 64, 64)) for watch in watches)


def test_no_more_trials_begin_than_were_asked_for(tmp_path: Path) -> None:
    one = tuner(FakeSession(), tmp_path / "p")
    layers = [Linear(rows, 64, 128) for rows in range(1, 6)]
    works = [(one.default_candidate(layer), one.points(layer), False) for layer in layers]
    done = list(one.measure_all(works, _is_over(Budget(10.0), one, trials=2)))
    assert done == works[:2] and one.crew.records["here:9090"].measured == 2


def test_a_tuning_that_ends_early_says_what_was_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Vanishing(ReadingSession):
        def measure(self, module: bytes, points: Any, **how: object) -> Measurement:
            if len(self.points) > 20:  # which calibration and the first trial need
                raise DeviceFailedError("the device cannot be opened")
            self.points += points
            return super().measure(module, points, **how)

    session: Any = Vanishing()
    one = tuner(session, tmp_path / "p")
    watch = Watch(session, target_for(FACTS), FACTS)
    with pytest.raises(MeasurementError, match="cannot be opened"):
        _measure(Budget(1e-6), one, watch, [], ["linear"], None)
    told = capsys.readouterr().err
    assert "the device at here:9090: 1 measured, 0 failed, interrupted" in told and "cannot be opened" in told
