"""Faults during a tuning of 200 trials: whatever befalls it, each of them becomes a sample.

The tuning is disturbed every few seconds, each process of it is killed in turn, and the command is repeated after each
end until all is measured. Then it is left in peace once: the profile has to plan a network.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
from outcomes import Outcome
from tuning_faults import Fault, Tuning, connect, fault_of, fill_disk, name_of, stop, waits

from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import CoexecError
from tvm_coexec.layers import Linear
from tvm_coexec.planning.from_profile import planner
from tvm_coexec.profile import Profile

_TRIALS = 200
_MINUTES = 60.0
_MOST_COMMANDS = 300
_PEACE_S = (4.0, 40.0)
_LONGEST_SAMPLE_US = 1e6
"""No kernel takes as long as the shortest stop of a process: a median of that length would be that of a stop."""

_ENDS_WITHIN_S = 600.0


def trial(seed: int) -> Outcome:
    """One profile, tuned through faults to the end."""
    rng, happened = random.Random(seed), Counter[str]()
    faults = _in_turn()
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        for number in range(_MOST_COMMANDS):
            wanted = _TRIALS - _measured(profile)
            if wanted <= 0:
                break
            tuning = Tuning(Path(folder), _MINUTES, wanted)
            wrong = _disturb(tuning, faults, rng, happened)
            if wrong:
                return Outcome("wrong", f"command {number}: {wrong}; before: {dict(happened)}")
        else:
            return Outcome("hung", f"{_measured(profile)} trials in {_MOST_COMMANDS} commands: {dict(happened)}")
        tuning = Tuning(Path(folder), _MINUTES, 1)
        ended = not waits(tuning, _ENDS_WITHIN_S)
        wrong = f"left behind: {left}" if (left := tuning.close()) else fault_of(tuning, [])
        if wrong or not ended or tuning.process.returncode:
            return Outcome("wrong", f"left in peace: {wrong or tuning.said[-1:]}; before: {dict(happened)}")
        wrong = _fault_of_end(profile)
        counts = ", ".join(f"{count} {what}" for what, count in happened.most_common())
        told = f"{_measured(profile)} trials measured by {number + 1} commands; {counts}"
        return Outcome("wrong", f"{wrong}; {told}") if wrong else Outcome("right", told)


def _in_turn() -> Iterator[Fault]:
    """Every fault, and between them the death of each process, the tuner's among them."""
    victims = itertools.count()

    def kill_next(tuning: Tuning, rng: random.Random) -> str:
        processes = tuning.look()
        victim = processes[next(victims) % len(processes)]
        name = name_of(tuning, victim)
        victim.kill()
        return f"killed {name}"

    return itertools.cycle([kill_next, stop, kill_next, connect, kill_next, fill_disk])


def _disturb(tuning: Tuning, faults: Iterator[Fault], rng: random.Random, happened: Counter[str]) -> str | None:
    """Disturb a tuning until it ends; what is wrong with that, if anything is."""
    done: list[str] = []
    while waits(tuning, rng.uniform(*_PEACE_S)) and len(done) < _MOST_COMMANDS:
        with contextlib.suppress(psutil.NoSuchProcess):
            done.append(next(faults)(tuning, rng))
            happened[done[-1].split(" at ")[0]] += 1
        if done[-1:] == ["no room on the disk"] and waits(tuning, _ENDS_WITHIN_S):
            return "it does not end, but can write nothing"
    left = tuning.close()
    if left:
        return f"left behind: {left} ({'; '.join(done)})"
    wrong = fault_of(tuning, done)
    ended = (tuning.said[-1:] or ["nothing"])[0].removeprefix("tvm-coexec: error: ")
    happened[f"ends with {tuning.process.returncode}: {ended.replace(str(tuning.profile), 'PROFILE')[:100]!r}"] += 1
    return f"{wrong} ({'; '.join(done)})" if wrong else None


def _measured(path: Path) -> int:
    """How many trials became samples: variants of a layer that were measured on the side that has more of them."""
    if not (path / "profile.json").exists():
        return 0
    with Profile.open(path) as profile:
        counts = Counter[str]()
        for (side, _), variants in profile.measured_variants().items():
            counts[side] += len(variants)
    return max(counts.values(), default=0)


def _fault_of_end(path: Path) -> str | None:
    """What is wrong with a profile that was tuned to the end, if anything is."""
    with Profile.open(path) as profile:
        for sample in profile.samples():
            if not 0 < sample.median_us < _LONGEST_SAMPLE_US:
                return f"{sample.layer} takes {sample.median_us:g} us on the {sample.side}"
        try:
            planned = planner(profile, target_for(profile.facts).hardware).plan_layer("layer", Linear(128, 768, 768))
        except CoexecError as error:
            return f"the profile plans nothing: {error}"
    return None if planned.total_us > 0 else "the profile expects that a layer takes no time"
