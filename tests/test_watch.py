"""A device that is slow for a while spoils no profile: what was measured in two speeds is measured again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from test_tuning import FACTS, FakeSession

from tvm_coexec.compiler.target import target_for
from tvm_coexec.layers import Linear
from tvm_coexec.prediction.drift import at_usual_speed
from tvm_coexec.prediction.predictors import newest
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Candidate, Point, PointTimes
from tvm_coexec.rpc.client import Measurement
from tvm_coexec.tuning import watch
from tvm_coexec.tuning.tuner import Tuner, Work, training_points
from tvm_coexec.tuning.watch import Watch

CANARY_US, UNIT_US = 400.0, 1000.0
SLOWER, EVERY_S, SLOW_S = 8.0, 20.0, 8.0
TRIALS = 80


class Phone(FakeSession):
    """A device with a clock of its own; it takes so long as it says."""

    def __init__(self) -> None:
        super().__init__()
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
        unit_us = CANARY_US / points[0].cpu_units if name else UNIT_US
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

    def slowness(self) -> float:
        return SLOWER if self.now_s % EVERY_S > EVERY_S - SLOW_S else 1.0


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
    for seconds, looks, pays in ((0.02, 1, False), (0.04, 2, True), (0.02, 2, False), (60.0, 3, True), (0.02, 4, True)):
        found = one.around(lambda seconds=seconds: takes_s(seconds))
        assert phone.looks == looks and found.change < 0.05
        assert found.canary_us == (pytest.approx(known, rel=0.03) if pays else {})
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
    assert [(bool(each.canary_us), each.change > 1) for each in found] == [
        (True, False),
        (False, True),
        (True, False),
        (False, True),
    ]
