"""Calibration: overheads and traffic from what a device answers, however noisy its times are."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from test_tuning import FACTS, FakeSession, tuner

from tvm_coexec.compiler.target import target_for
from tvm_coexec.planning.division import Overheads
from tvm_coexec.profile import Profile
from tvm_coexec.tuning.calibration import measure_memory, measure_overheads
from tvm_coexec.tuning.fitting import processors
from tvm_coexec.tuning.tuner import Tuner


class RunningSession(FakeSession):
    """Answers with the same time for every run; every layer takes 2 us on the CPU, 3 us on the GPU."""

    def __init__(self, run_us: float) -> None:
        super().__init__()
        self.run_us = run_us
        self.splits: list[Mapping[str, int]] = []

    def time_runs(self, module: bytes, splits: Sequence[Mapping[str, int]], *, repeats: int) -> list[list[float]]:
        self.splits += splits
        return [[self.run_us] * repeats for _ in splits]


def test_overheads_are_what_a_layer_takes_beyond_its_longer_half(tmp_path: Path) -> None:
    assert measure_overheads(tuner(FakeSession(), tmp_path / "p")) == Overheads(split_us=1.0, gpu_alone_us=1.0)


def test_activations_cost_what_a_network_takes_beyond_its_layers(tmp_path: Path) -> None:
    slow, slower = RunningSession(1018.0), RunningSession(2018.0)
    rates = [
        measure_memory(tuner(session, tmp_path / str(number)), Overheads(0.0, 0.0)).activations
        for number, session in enumerate((slow, slower))
    ]
    assert rates[0].alone["cpu"] == pytest.approx(2 * rates[1].alone["cpu"])  # nine layers of 2 us, 1000 and 2000 more
    assert rates[0].concurrent["cpu"] == rates[0].concurrent["gpu"] > 0
    shares = {frozenset(split.values()) == frozenset({0}) for split in slow.splits}
    assert shares == {True, False}


def test_one_disturbed_trial_does_not_count(tmp_path: Path) -> None:
    class Disturbed(RunningSession):
        first = 1.0

        def time_runs(self, module: bytes, splits: Sequence[Mapping[str, int]], *, repeats: int) -> list[list[float]]:
            factor = 1.0 if self.splits else self.first
            return [[factor * us for us in runs] for runs in super().time_runs(module, splits, repeats=repeats)]

    rates = []
    for first in (1.0, 0.5, 9.0):
        session = Disturbed(1018.0)
        session.first = first
        rates.append(measure_memory(tuner(session, tmp_path / str(first)), Overheads(0.0, 0.0)).activations)
    assert rates[0] == rates[1] == rates[2]


def test_a_network_that_seems_faster_than_its_layers_leaves_rates_finite(tmp_path: Path) -> None:
    rates = measure_memory(tuner(RunningSession(1.0), tmp_path / "p"), Overheads(0.0, 0.0)).activations
    assert all(0 < rate < float("inf") for rate in (*rates.alone.values(), *rates.concurrent.values()))


@pytest.mark.parametrize(("told_mib", "usable_mib"), [(32, 32), (480, 64)])
def test_of_a_cache_that_a_whole_host_shares_a_part_counts(told_mib: int, usable_mib: int, tmp_path: Path) -> None:
    facts = {**FACTS, "cache_bytes": {"l2": 1 << 20, "l3": told_mib << 20}}
    one = Tuner(RunningSession(1.0), Profile.create(tmp_path / "p", facts), target_for(facts))  # type: ignore[arg-type]
    assert measure_memory(one, Overheads(0.0, 0.0)).cache_bytes == usable_mib << 20
    assert processors(facts)["gpu"].shared_cache_bytes == usable_mib << 20
