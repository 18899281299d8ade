"""Turns are repeated where the machine is unsteady, and nothing that was measured is lost."""

from collections.abc import Callable, Sequence

import pytest
import steadiness
from steadiness import MOST_TRIES, Turns, Yardstick

from tvm_coexec.runtime.device import Device


def numbered() -> Callable[[int], list[float]]:
    """A timer whose runs take 1, 2, 3 … µs."""
    runs = iter(range(1, 1000))
    return lambda repeats: [float(next(runs)) for _ in range(repeats)]


@pytest.mark.parametrize(
    ("answers", "counted", "repeated", "unsteady"),
    [
        ([True, True], [1, 2], [], 0),
        ([False, False, True, True], [1, 2], [], 0),
        ([True, False, True, True], [3, 4], [[1, 2]], 0),
        ([True, False, False, True, True], [3, 4], [[1, 2]], 0),
        ([False] * MOST_TRIES, [1, 2], [], 1),
        ([True, False] * MOST_TRIES, [9, 10], [[1, 2], [3, 4], [5, 6], [7, 8]], 1),
        ([*[False] * (MOST_TRIES - 1), True, True], [1, 2], [], 0),
    ],
    ids=["steady", "before", "after", "both", "never", "always after", "at last"],
)
def test_a_turn_is_repeated_while_the_machine_is_unsteady(
    monkeypatch: pytest.MonkeyPatch,
    answers: Sequence[bool],
    counted: list[float],
    repeated: list[list[float]],
    unsteady: int,
) -> None:
    monkeypatch.setattr(steadiness, "_PAUSE_S", 0.0)
    left = iter(answers)
    turns = Turns()
    turns.take(numbered(), 2, lambda: next(left))
    assert (turns.samples_us, turns.repeated_us, turns.unsteady) == (counted, repeated, unsteady)
    assert not list(left)  # nothing was asked in vain


def test_turns_add_up() -> None:
    turns, timer = Turns(), numbered()
    for _ in range(3):
        turns.take(timer, 2, lambda: True)
    assert turns.samples_us == [1, 2, 3, 4, 5, 6]


def test_the_yardstick_compares_with_its_best(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    yardstick = Yardstick(device)
    taken_us = iter([8.0, 10.0, 10.1, 1000.0, 4.0, 8.0])
    monkeypatch.setattr(yardstick, "_best_us", 8.0)
    monkeypatch.setattr(yardstick, "_take_us", lambda: next(taken_us))
    assert [yardstick.is_steady() for _ in range(6)] == [True, True, False, False, True, False]


def test_the_yardstick_runs_on_both_sides(device: Device) -> None:
    module = Yardstick(device)._module
    (step,) = module._package.manifest.steps
    assert 0 < next(iter(module.splits.values())) < step.units
    assert Yardstick(device)._take_us() > 0
