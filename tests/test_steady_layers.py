"""Programs are timed in rounds: one program once, whatever it is called, and again where the machine was unsteady."""

import types
from collections.abc import Sequence
from typing import Any

import pytest
import steady_layers
from steady_layers import Program, SteadyTimer

from tvm_coexec.layers import Linear, Variant
from tvm_coexec.profile.records import Candidate, Point, PointTimes
from tvm_coexec.rpc.outcomes import Measurement

LAYER = Linear(9, 64, 96)


def variant(number: int) -> Variant:
    return Variant("direct", (("unroll", number),))


class PretendedTuner:
    """Answers with the number of the call, and with a canary that is slow when it is told so."""

    def __init__(self, slow: Sequence[int] = ()) -> None:
        self.target = self.profile = types.SimpleNamespace(facts={})
        self.session = types.SimpleNamespace(time_runs=self._time_runs)
        self.asked: list[tuple[Candidate, list[int], bool]] = []
        self.slow, self.looks = slow, 0

    def ask(self, candidate: Candidate, points: Sequence[Point], *, check: bool) -> Measurement:
        self.asked.append((candidate, [point.cpu_units for point in points], check))
        times_us = (float(len(self.asked)),)
        return Measurement(tuple(PointTimes(one.cpu_units, one.gpu_units, (), (), times_us) for one in points), None)

    def _time_runs(self, module: bytes, splits: Sequence[Any], *, repeats: int) -> list[list[float]]:
        self.looks += 1
        return [[2.0 if self.looks in self.slow else 1.0] * repeats]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_coexec.bench.steadiness._PAUSE_S", 0.0)
    monkeypatch.setattr(steady_layers, "canary", lambda *_: types.SimpleNamespace(to_bytes=lambda: b""))


def test_what_is_planned_for_one_side_is_that_side() -> None:
    planned, other = Candidate(LAYER, variant(1), variant(2)), Candidate(LAYER, variant(1), variant(3))
    assert Program.at(planned, LAYER.units) == Program.at(other, LAYER.units)
    assert Program.at(planned, 0) != Program.at(other, 0)
    assert Program.at(planned, 1) != Program.at(other, 1)


def test_every_program_is_timed_once_a_round_and_checked_in_the_first() -> None:
    tuner = PretendedTuner()
    candidate, other = Candidate(LAYER, variant(1), variant(2)), Candidate(LAYER, variant(4), variant(2))
    programs = {Program.at(candidate, 0): candidate, Program.at(candidate, 1): candidate, Program.at(other, 6): other}
    rounds = SteadyTimer(tuner).time(programs, 1, 2, {"engine": lambda repeats: [7.0] * repeats})  # type: ignore[arg-type]
    assert tuner.asked == [
        (one, splits, check) for check in (True, False) for one, splits in ((candidate, [0, 1]), (other, [6]))
    ]
    assert list(rounds.samples_us.values()) == [[1.0, 3.0], [1.0, 3.0], [2.0, 4.0]]
    assert rounds.others_us == {"engine": [7.0, 7.0]}
    assert rounds.fastest(programs) == [1.0, 3.0]
    assert (rounds.repeated, rounds.unsteady, rounds.mark("1.9×")) == (0, 0, "1.9×")


def test_a_round_on_an_unsteady_machine_is_repeated_or_marked() -> None:
    candidate = Candidate(LAYER, variant(1), variant(2))
    programs = {Program.at(candidate, 0): candidate}
    rounds = SteadyTimer(PretendedTuner(slow=[13])).time(programs, 1, 1)  # type: ignore[arg-type]
    assert (rounds.repeated, rounds.unsteady, rounds.samples_us) == (1, 0, {Program.at(candidate, 0): [2.0]})
    rounds = SteadyTimer(PretendedTuner(slow=[12]), patience_s=0.0).time(programs, 1, 1)  # type: ignore[arg-type]
    assert (rounds.unsteady, rounds.mark("1.04×")) == (1, "1.04× (unsteady)")
