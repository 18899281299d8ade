"""What is timed is timed again where the machine is unsteady, and nothing that was timed is lost."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from tvm_coexec.bench import steadiness
from tvm_coexec.bench.steadiness import Canary, Turn, Turns
from tvm_coexec.compiler.probes import canary
from tvm_coexec.compiler.target import target_for
from tvm_coexec.rpc.measuring import Measuring
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module


class Clock:
    """Time that passes only when somebody sleeps or times something."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([True, True], Turn(1, (), 0, is_steady=True)),
        ([False, False, True, True], Turn(1, (), 2, is_steady=True)),
        ([True, False, True, True], Turn(2, (1,), 0, is_steady=True)),
        ([True, False, False, True, True], Turn(2, (1,), 1, is_steady=True)),
        ([False] * 6, Turn(1, (), 5, is_steady=False)),
        ([True, False] * 3, Turn(3, (1, 2), 0, is_steady=False)),
        ([True, False, False, True, False, True, True], Turn(3, (1, 2), 1, is_steady=True)),
    ],
    ids=["steady", "before", "after", "both", "never", "always after", "at last"],
)
def test_a_turn_is_repeated_while_the_machine_is_unsteady(
    monkeypatch: pytest.MonkeyPatch, answers: Sequence[bool], expected: Turn[int]
) -> None:
    def take() -> int:
        clock.sleep(0.5)
        return next(taken)

    clock = Clock()
    monkeypatch.setattr(steadiness, "time", clock)
    asked, taken = iter(answers), iter(range(1, 100))
    assert Turns(lambda: next(asked), patience_s=0.9).take(take) == expected
    assert not list(asked), "nothing was asked in vain"


def test_turns_share_their_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(steadiness, "time", clock)
    turns: Turns[int] = Turns(lambda: False, patience_s=0.9)
    assert turns.is_patient
    assert [turns.take(lambda: 1).put_off for _ in range(3)] == [5, 0, 0]
    assert not turns.is_patient


def test_a_machine_that_is_never_steady_is_waited_for_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, steady, waits_s = Clock(), [False, False, False, True, False], list[float]()
    monkeypatch.setattr(steadiness, "time", clock)
    module = SimpleNamespace(
        splits={},
        randomize_inputs=lambda: None,
        benchmark=lambda **_: SimpleNamespace(latency_us=[1.0]),
        time_halves=lambda **_: [],
    )

    class Session(Measuring):
        def facts(self, request: object) -> dict[str, object]:
            return {}

        def load(self, name: str) -> object:  # type: ignore[override]
            return module

        def _steadiness(self, name: str | None) -> Callable[[], bool]:
            return lambda: steady[0]

    session = Session()
    request = {"modules": ["m"], "canary": "c", "rounds": 2, "repeats": 1, "timelines": 0}
    while steady:
        began_s = clock.monotonic()
        session.run_trials(request)
        waits_s.append(clock.monotonic() - began_s)
        del steady[0]
    assert waits_s == pytest.approx([60, 30, 15, 0, 60], abs=0.5)


@pytest.fixture
def chain(device: Device) -> Module:
    return Module(canary(target_for(device.facts()), device.facts()), device)


def test_the_canary_compares_with_its_best(chain: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Canary.of(chain)
    taken_us = iter([8.0, 10.0, 10.1, 1000.0, 4.0, 8.0])
    monkeypatch.setattr(measure, "_best_us", 8.0)
    monkeypatch.setattr(measure, "_take_us", lambda: next(taken_us))
    assert [measure.is_steady() for _ in range(6)] == [True, True, False, False, True, False]


def test_the_canary_runs_on_both_sides(chain: Module) -> None:
    assert chain.sync_count >= 2 * (len(chain.splits) - 1), "each side reads what both have just computed"
    assert Canary.of(chain)._take_us() > 0
