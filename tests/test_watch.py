"""A device that is slow for a while spoils no profile: what was measured in two speeds is measured again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_tuning import FACTS, FakeSession

from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import MeasurementError
from tvm_coexec.layers import Linear, Variant
from tvm_coexec.prediction.drift import at_usual_speed
from tvm_coexec.prediction.predictors import newest
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Candidate, Point, PointTimes
from tvm_coexec.rpc.outcomes import DeviceFailedError, Measurement, RefusedError, SessionLostError, WrongError
from tvm_coexec.tuning import budget, watch
from tvm_coexec.tuning.budget import Budget
from tvm_coexec.tuning.measurer import Measurer
from tvm_coexec.tuning.tuner import Tuner, Work, training_points
from tvm_coexec.tuning.watch import Watch, Watched

CANARY_US, UNIT_US = 400.0, 1000.0
SLOWER = 8.0
TRIALS = 80
CANDIDATE = Candidate(Linear(1, 8, 8), Variant("a"), Variant("b"))


class Phone(FakeSession):
    """A device with a clock of its own; it takes so long as it says."""

    def __init__(self, unit_us: float = UNIT_US) -> None:
        super().__init__()
        self.unit_us = unit_us
        self.now_s, self.trials, self.looks = 0.0, 0, 0
        self.random = random.Random(1)

    def monotonic(self) -> float:
        return self.now_s

    def slowness(self) -> float:
        """How many times as long as usually the CPU takes now."""
        return 1.0

    def repetition_us(self, cpu_us: float, gpu_us: float) -> tuple[float, float]:
        cpu_us *= self.random.uniform(0.98, 1.02) * self.slowness()
        gpu_us *= self.random.uniform(0.98, 1.02)
        self.now_s += max(cpu_us, gpu_us) / 1e6
        return cpu_us, gpu_us

    def measure(self, module: bytes, points: list[Point], *, name: str = "", **_: object) -> Measurement:
        unit_us = CANARY_US / points[0].cpu_units if name else self.unit_us
        self.trials += not name
        self.looks += bool(name)
        self.now_s += 0.002  # it is asked by way of a network
        found = []
        for point in points:
            times = [
                self.repetition_us(point.cpu_units * unit_us, point.gpu_units * unit_us) for _ in range(point.repeats)
            ]
            cpu_us, gpu_us = zip(*times, strict=True)
            sides = (cpu_us if point.cpu_units else (), gpu_us if point.gpu_units else ())
            found.append(PointTimes(point.cpu_units, point.gpu_units, *sides, ()))
        return Measurement(tuple(found), 0.0)


class Throttled(Phone):
    """Its CPU is slow from time to time."""

    every_s, slow_s = 20.0, 8.0

    def slowness(self) -> float:
        return SLOWER if self.now_s % self.every_s > self.every_s - self.slow_s else 1.0


class Disturbed(Phone):
    """Its CPU is slow while the canary runs for the tenth time, and never else."""

    is_slow = False

    def slowness(self) -> float:
        return SLOWER if self.is_slow else 1.0

    def measure(self, module: bytes, points: list[Point], *, name: str = "", **how: object) -> Measurement:
        self.is_slow = bool(name) and self.looks == 10 - 1
        return super().measure(module, points, name=name, **how)


class Modules:
    """Modules without a compiler."""

    most_waiting = 0

    def begin(self, candidates: Any) -> None:
        pass

    def take(self, candidate: Candidate) -> bytes:
        return b"a module"


def tuned(path: Path, phone: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[Any, float], dict[Any, float]]:
    """Median times of all halves after a tuning, as measured and at the usual speed."""
    monkeypatch.setattr(watch, "time", phone)
    modules: Any = Modules()
    with Profile.create(path, FACTS) as profile:
        its_watch = Watch(phone, target_for(FACTS), FACTS)
        its_watch.look_once()
        one = Tuner(phone, profile, target_for(FACTS), modules, its_watch)
        list(one.measure_all(works(one)))
        samples = newest(profile.samples())
    measured, usual = (
        {(s.layer, s.side, s.variant, s.units, s.other_units): s.median_us for s in some}
        for some in (samples, at_usual_speed(samples))
    )
    return measured, usual


def works(one: Tuner) -> list[Work]:
    layers = [Linear(rows, 64, 128, ("bias",)) for rows in range(1, TRIALS + 1)]
    return [(one.default_candidate(layer), training_points(layer), False) for layer in layers]


def beyond(times_us: dict[Any, float], steady_us: dict[Any, float]) -> int:
    """How many are off by more than a tenth."""
    assert times_us.keys() == steady_us.keys()
    return sum(abs(us / steady_us[half] - 1) > 0.1 for half, us in times_us.items())


def test_a_profile_of_a_device_that_was_slow_for_a_while_equals_that_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady, throttled = Phone(), Throttled()
    _, steady_us = tuned(tmp_path / "steady", steady, monkeypatch)
    measured_us, usual_us = tuned(tmp_path / "throttled", throttled, monkeypatch)
    assert len(steady_us) > 9 * TRIALS and beyond(measured_us, steady_us) > 20
    assert beyond(usual_us, steady_us) == 0
    assert steady.trials == TRIALS < throttled.trials < 1.3 * TRIALS


def test_short_work_takes_the_speed_of_the_canary_that_ran_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady, throttled = Phone(UNIT_US / 100), Throttled(UNIT_US / 100)
    throttled.every_s, throttled.slow_s = 1.0, 0.5
    _, steady_us = tuned(tmp_path / "steady", steady, monkeypatch)
    measured_us, usual_us = tuned(tmp_path / "throttled", throttled, monkeypatch)
    assert beyond(measured_us, steady_us) > 20 and throttled.looks < throttled.trials / 2
    assert beyond(usual_us, steady_us) < beyond(measured_us, steady_us) / 4, "only some between two speeds are left"


def test_one_disturbed_run_of_the_canary_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, steady_us = tuned(tmp_path / "steady", Phone(), monkeypatch)
    disturbed = Disturbed()
    _, usual_us = tuned(tmp_path / "disturbed", disturbed, monkeypatch)
    assert beyond(usual_us, steady_us) == 0 and disturbed.trials > TRIALS


def test_the_canary_runs_no_oftener_than_pays_and_is_stored_with_what_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone: Any = Phone()
    monkeypatch.setattr(watch, "time", phone)
    one = Watch(phone, target_for(FACTS), FACTS)

    def takes_s(seconds: float) -> None:
        phone.now_s += seconds

    known = {"cpu": CANARY_US, "gpu": CANARY_US}
    for seconds, looks, pays in (
        (0.02, 1, False),
        (0.04, 2, True),
        (0.02, 2, False),
        (60.0, 3, True),
        (0.02, 3, False),
    ):
        found = one.around(lambda seconds=seconds: takes_s(seconds))
        assert phone.looks == looks and found.canary_us == (pytest.approx(known, rel=0.03) if pays else {})
        assert found.change is not None and found.change < 0.05 if pays else found.change is None
    assert one.around(lambda: takes_s(0.01), surely=True).canary_us and phone.looks == 4
    phone.now_s += 60.0
    one.around(lambda: takes_s(1.0))
    assert phone.looks == 6, "the last one said nothing any more"
    with Profile.create(tmp_path / "p", FACTS) as profile:
        tuner = Tuner(phone, profile, target_for(FACTS), Modules(), one)  # type: ignore[arg-type]
        tuner.measure(tuner.default_candidate(Linear(1, 64, 128)), [Point(2, 2, 60)])
        assert [sample.canary_us for sample in profile.samples()] == pytest.approx([CANARY_US] * 2, rel=0.03)


def test_what_was_measured_while_a_lease_ended_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Moving(Throttled):
        """It is another device from the third run of the canary on, and again from the fifth."""

        def measure(self, module: bytes, points: list[Point], *, name: str = "", **how: object) -> Measurement:
            measured = super().measure(module, points, name=name, **how)
            self.address = f"device {(self.looks >= 3) + (self.looks >= 5)}"
            return measured

    phone: Any = Moving()
    monkeypatch.setattr(watch, "time", phone)
    one = Watch(phone, target_for(FACTS), FACTS)
    found = [one.around(lambda: phone.measure(b"", [Point(2, 2, 60)])) for _ in range(4)]
    assert [(bool(each.canary_us), each.change == np.inf) for each in found] == [
        (True, False),
        (False, True),
        (True, False),
        (False, True),
    ]


def test_a_canary_that_fails_tells_nothing_and_is_held_off(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(Phone):
        """It computes the canary twice, and lets it wait for a minute from then on."""

        def measure(self, module: bytes, points: list[Point], *, name: str = "", **how: object) -> Measurement:
            if self.looks < 2 or not name:
                return super().measure(module, points, name=name, **how)
            self.looks += 1
            self.now_s += 60.0
            self.address = "another"
            raise SessionLostError("its time was over")

    phone: Any = Refusing()
    monkeypatch.setattr(watch, "time", phone)
    one = Watch(phone, target_for(FACTS), FACTS)

    def takes_s(seconds: float) -> None:
        phone.now_s += seconds

    found = [one.around(lambda: takes_s(10.0)) for _ in range(100)]
    assert [each.change for each in found[2:]] == [None] * 98 and not any(each.canary_us for each in found[1:])
    assert found[0].canary_us and found[1].change == np.inf, "it was another device from the second one on"
    assert phone.looks - 2 >= 4 and 60.0 * (phone.looks - 2) < 0.25 * phone.now_s


def watched(change: float | None, name: str, *, pays: bool = True) -> Watched[Any]:
    times = [PointTimes(1, 0, (float(name),), (), ())]
    return Watched(times, {"cpu": 1.0} if change is not None else {}, change, may_be_repeated=pays)


class Told:
    """A watch that finds what it is told to find, and measures only where a list of points comes first."""

    def __init__(self, found: list[Any]) -> None:
        self.found, self.surely = found, list[bool]()

    def around(self, measure: Any, *, surely: bool = False) -> Any:
        self.surely.append(surely)
        one = self.found.pop(0)
        if isinstance(one, Exception):
            raise one
        return one


def measurer(found: list[Any]) -> Measurer:
    told: Any = Told(found)
    phone: Any = Phone()
    return Measurer(phone, lambda _: b"", CANDIDATE, told)


def taken(one: Measurer) -> float:
    """The time of the only point that was measured in the end."""
    (sample,) = one.samples(CANDIDATE, [Point(1, 0)])
    return sample.latency_us[0]


def test_a_repetition_is_taken_where_it_is_known_to_be_steadier() -> None:
    for first, then, kept in (
        (0.05, [], 1),
        (None, [], 1),
        (2.0, [0.05], 2),
        (2.0, [None, None], 1),
        (2.0, [None, 0.05], 3),
        (2.0, [1.0, 1.5], 2),
        (np.inf, [None], 2),
        (np.inf, [0.05], 2),
    ):
        found = [watched(change, str(number)) for number, change in enumerate([first, *then], 1)]
        one = measurer(found)
        assert taken(one) == kept and not found, (first, then)
        assert one._watch.surely == [False] + [True] * len(then)  # type: ignore[union-attr]
    assert taken(measurer([watched(2.0, "1", pays=False)])) == 1


def test_what_changes_usually_is_no_reason_to_repeat_whatever_is_not_known() -> None:
    changes = [0.14, 0.15] * 5
    usual = [watched(change, "1") for known in changes for change in (known, None, None)]
    one = measurer([watched(2.0, "1"), watched(0.05, "2"), watched(0.09, "1"), *usual])
    assert taken(one) == 2
    assert {taken(one) for _ in range(1 + len(usual))} == {1}


def test_what_was_measured_is_kept_where_its_repetition_fails() -> None:
    for error in (RefusedError("busy"), SessionLostError("over"), MeasurementError("gone"), DeviceFailedError("ill")):
        assert taken(measurer([watched(2.0, "1"), error])) == 1
    with pytest.raises(WrongError):
        taken(measurer([watched(2.0, "1"), WrongError("the result is wrong")]))


def test_nothing_is_repeated_after_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    phone: Any = Phone()
    monkeypatch.setattr(watch, "time", phone)
    monkeypatch.setattr(budget, "time", phone)
    one = Watch(phone, target_for(FACTS), FACTS, Budget(1.0))

    def takes_s(seconds: float) -> None:
        phone.now_s += seconds

    pays = [one.around(lambda: takes_s(1.0)).may_be_repeated for _ in range(70)]
    assert pays[:50] == [True] * 50 and not any(pays[60:])
