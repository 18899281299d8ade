"""Times layers on a device in rounds, each of which is timed again where the machine was unsteady meanwhile.

A program, some kernels at some split, is timed once a round whatever it is called: what is planned for one side alone
is that side alone, and is neither faster nor slower than itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from reporting import median_us

from tvm_coexec.bench.steadiness import Canary, Turns
from tvm_coexec.compiler.probes import canary
from tvm_coexec.layers import AnyLayer, Variant
from tvm_coexec.profile.records import Candidate, Point
from tvm_coexec.tuning.tuner import Tuner

PATIENCE_S = 20.0
"""A layer is waited for so long where figures are to be published: a neighbour's work mostly ends meanwhile."""


Timer = Callable[[int], Sequence[float]]
"""Takes so many runs, and returns their times."""


@dataclass(frozen=True)
class Program:
    """A layer at a split, by the kernels that take part in it."""

    layer: AnyLayer
    cpu_units: int
    cpu: Variant | None
    gpu: Variant | None

    @classmethod
    def at(cls, candidate: Candidate, cpu_units: int) -> Program:
        cpu = candidate.cpu if cpu_units else None
        return cls(candidate.layer, cpu_units, cpu, candidate.gpu if cpu_units < candidate.layer.units else None)


@dataclass
class Rounds:
    """Samples of every program, and what became of the rounds."""

    samples_us: dict[Program, list[float]] = field(default_factory=dict)
    others_us: dict[str, list[float]] = field(default_factory=dict)
    repeated: int = 0
    unsteady: int = 0

    def fastest(self, programs: Iterable[Program]) -> list[float]:
        """The samples of the one of several programs that takes least time."""
        return min((self.samples_us[program] for program in programs), key=median_us)

    def to_json(self) -> dict[str, Any]:
        return {"rounds_repeated": self.repeated, "unsteady_rounds": self.unsteady}

    def mark(self, text: str) -> str:
        """A figure of a table, marked where the machine was never steady for some of its rounds."""
        return f"{text} (unsteady)" if self.unsteady else text


_Round = tuple[Mapping[Program, Sequence[float]], Mapping[str, Sequence[float]]]


class SteadyTimer:
    """Times programs through a tuner's session, beside a canary of the same device.

    Parameters
    ----------
    patience_s
        What a layer's rounds may spend on a machine that is unsteady.
    """

    def __init__(self, tuner: Tuner, patience_s: float = PATIENCE_S) -> None:
        self._tuner, self._patience_s = tuner, patience_s
        module = canary(tuner.target, tuner.profile.facts).to_bytes()
        self._canary = Canary(lambda runs: tuner.session.time_runs(module, [{}], repeats=runs)[0])

    def time(
        self,
        programs: Mapping[Program, Candidate],
        repeats: int,
        rounds: int,
        others: Mapping[str, Timer] | None = None,
    ) -> Rounds:
        """Time all programs in every round.

        Parameters
        ----------
        programs
            With the candidates that the device is sent for them.
        others
            What else takes part in the rounds, by its names.
        """
        others = others or {}
        found = Rounds({program: [] for program in programs}, {name: [] for name in others})
        turns: Turns[_Round] = Turns(self._canary.is_steady, self._patience_s)
        for number in range(rounds):
            turn = turns.take(partial(self._time_once, programs, repeats, others, number == 0))
            for kept, taken in zip((found.samples_us, found.others_us), turn.taken, strict=True):
                for key, samples_us in taken.items():
                    kept[key] += samples_us
            found.repeated += len(turn.repeated)
            found.unsteady += not turn.is_steady
        return found

    def _time_once(
        self, programs: Mapping[Program, Candidate], repeats: int, others: Mapping[str, Timer], check: bool
    ) -> _Round:
        times_us: dict[Program, Sequence[float]] = {}
        for candidate in dict.fromkeys(programs.values()):
            own = [program for program, by in programs.items() if by == candidate]
            points = [Point(one.cpu_units, one.layer.units - one.cpu_units, repeats) for one in own]
            measured = self._tuner.ask(candidate, points, check=check).points
            times_us.update({program: point.wall_us for program, point in zip(own, measured, strict=True)})
        return times_us, {name: time_us(repeats) for name, time_us in others.items()}
