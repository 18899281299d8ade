"""What is timed is timed again where the machine is unsteady, and nothing that was timed is lost."""

from collections.abc import Sequence

import pytest

from tvm_coexec.packaging import yardstick
from tvm_coexec.runtime import steadiness
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module
from tvm_coexec.runtime.steadiness import MOST_TRIES, Turn, Yardstick, take_turn
from tvm_coexec.target import target_for


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([True, True], Turn(1, (), 0, is_steady=True)),
        ([False, False, True, True], Turn(1, (), 2, is_steady=True)),
        ([True, False, True, True], Turn(2, (1,), 0, is_steady=True)),
        ([True, False, False, True, True], Turn(2, (1,), 1, is_steady=True)),
        ([False] * MOST_TRIES, Turn(1, (), MOST_TRIES - 1, is_steady=False)),
        ([True, False] * MOST_TRIES, Turn(5, (1, 2, 3, 4), 0, is_steady=False)),
        ([*[False] * (MOST_TRIES - 1), True, True], Turn(1, (), MOST_TRIES - 1, is_steady=True)),
    ],
    ids=["steady", "before", "after", "both", "never", "always after", "at last"],
)
def test_a_turn_is_repeated_while_the_machine_is_unsteady(
    monkeypatch: pytest.MonkeyPatch, answers: Sequence[bool], expected: Turn[int]
) -> None:
    monkeypatch.setattr(steadiness, "_PAUSE_S", 0.0)
    asked, taken = iter(answers), iter(range(1, 100))
    assert take_turn(lambda: next(taken), lambda: next(asked)) == expected
    assert not list(asked), "nothing was asked in vain"


@pytest.fixture
def small_layer(device: Device) -> Module:
    return Module(yardstick(target_for(device.facts()), device.facts()), device)


def test_the_yardstick_compares_with_its_best(small_layer: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Yardstick(small_layer)
    taken_us = iter([8.0, 10.0, 10.1, 1000.0, 4.0, 8.0])
    monkeypatch.setattr(measure, "_best_us", 8.0)
    monkeypatch.setattr(measure, "_take_us", lambda: next(taken_us))
    assert [measure.is_steady() for _ in range(6)] == [True, True, False, False, True, False]


def test_the_yardstick_runs_on_both_sides(small_layer: Module) -> None:
    ((name, units),) = small_layer.splits.items()
    measure = Yardstick(small_layer)
    assert 0 < small_layer.splits[name] < units
    assert measure._take_us() > 0
