"""Calibration: overheads and the memory model from what a device answers, however noisy its times are."""

import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from slow import slow_except
from test_profile import CANDIDATE, GPU_ALONE, times
from test_tuning import FACTS, LAYER, FakeSession, tuner

from tvm_coexec.compiler.target import target_for
from tvm_coexec.planning.division import Overheads
from tvm_coexec.prediction.memory_model import MemoryModel, Rates
from tvm_coexec.prediction.reads import Reads
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Point, PointTimes, samples_of
from tvm_coexec.rpc.outcomes import Measurement, WrongError
from tvm_coexec.tuning import calibration, measurer
from tvm_coexec.tuning.calibration import (
    calibrate,
    measure_launches_again,
    measure_memory,
    measure_overheads,
    time_smallest_layer,
)
from tvm_coexec.tuning.reading import measure_reads
from tvm_coexec.tuning.tuner import Tuner

LATE = float("inf")
REFUSED = 0.0

READS = {side: Reads.of([1e6, 2e6], [100.0, 200.0], [200.0, 400.0]) for side in ("cpu", "gpu")}


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
    one = tuner(FakeSession(), tmp_path / "p")
    assert measure_overheads(one, time_smallest_layer(one), math.inf) == Overheads(split_us=1.0, gpu_alone_us=1.0)


class LaunchingSession(FakeSession):
    """A GPU that launches every 9 us at first and every 6 us later, and tells of kernels 2 us more than they add."""

    def __init__(self, kernels_us: Sequence[float]) -> None:
        super().__init__()
        self.kernels_us = list(kernels_us)
        self.interval_us = 9.0

    def measure(self, module: bytes, points: Sequence[Point], **_: object) -> Measurement:
        kernel_us = self.kernels_us.pop(0)
        wall_us = max(self.interval_us, kernel_us - 2.0)
        self.interval_us = 6.0
        times = [
            PointTimes(p.cpu_units, p.gpu_units, (2.0,) * bool(p.cpu_units), (kernel_us,), (wall_us,)) for p in points
        ]
        return Measurement(tuple(times), 0.0)


def gpu_overheads(path: Path, kernels_us: Sequence[float]) -> Overheads:
    profile = Profile.create(path, {**FACTS, "device_type": "gpu"})
    one = Tuner(LaunchingSession(kernels_us), profile, target_for(profile.facts))  # type: ignore[arg-type]
    return measure_overheads(one, time_smallest_layer(one), math.inf)


def test_launches_of_a_gpu_are_told_apart_from_what_kernels_take_besides(tmp_path: Path) -> None:
    assert gpu_overheads(tmp_path / "p", [4.0, 7.0, 30.0, 4.0, 4.0, 4.0]) == Overheads(5.0, -2.0, gpu_interval_us=6.0)


def test_launches_of_a_device_that_has_worked_may_follow_each_other_faster(tmp_path: Path) -> None:
    profile = Profile.create(tmp_path / "p", {**FACTS, "device_type": "gpu"})
    session = LaunchingSession([4.0, 4.0, 4.0])
    one = Tuner(session, profile, target_for(profile.facts))  # type: ignore[arg-type]
    profile.describe(planning={"overheads": asdict(Overheads(5.0, -2.0, gpu_interval_us=8.0))})
    measure_launches_again(one)
    assert profile.planning == {"overheads": asdict(Overheads(5.0, -2.0, gpu_interval_us=6.0))}
    assert not session.kernels_us


@pytest.mark.parametrize(("known_us", "interval_us"), [(5.0, 5.0), (8.0, 6.0), (0.0, 6.0)])
def test_the_shortest_interval_of_launches_that_a_tuning_reached_is_kept(
    tmp_path: Path, known_us: float, interval_us: float
) -> None:
    profile = Profile.create(tmp_path / "p", {**FACTS, "device_type": "gpu"})
    one = Tuner(LaunchingSession([4.0, 7.0, 4.0, 4.0, 4.0]), profile, target_for(profile.facts))  # type: ignore[arg-type]
    known = Overheads(9.0, -2.0, gpu_interval_us=known_us)
    found = measure_overheads(one, time_smallest_layer(one), math.inf, known)
    assert found == Overheads(5.0, -2.0, gpu_interval_us=interval_us)


def test_what_a_layer_takes_beyond_its_kernel_stays_as_samples_were_told_by_it(tmp_path: Path) -> None:
    profile = Profile.create(tmp_path / "p", {**FACTS, "device_type": "gpu"})
    one = Tuner(LaunchingSession([4.0, *[7.0] * 3]), profile, target_for(profile.facts))  # type: ignore[arg-type]
    known = Overheads(9.0, -1.5, gpu_interval_us=5.0)
    assert measure_overheads(one, time_smallest_layer(one), math.inf, known).gpu_alone_us == -1.5


@pytest.mark.parametrize(
    ("device_type", "gpu_alone_us", "kernel_us"),
    [("gpu", -2.0, 6.0), ("gpu", 3.5, 1.0), ("gpu", 0.0, 3.0), ("cpu", -2.0, 3.0)],
)
def test_a_gpu_alone_is_timed_by_what_it_adds_to_a_chain(
    tmp_path: Path, device_type: str, gpu_alone_us: float, kernel_us: float
) -> None:
    """Its events tell 3 us, and a chain grows by 4 with each layer."""
    profile = Profile.create(tmp_path / "p", {**FACTS, "device_type": device_type})
    profile.describe(planning={"overheads": asdict(Overheads(5.0, gpu_alone_us))})
    one = Tuner(FakeSession(), profile, target_for(profile.facts))  # type: ignore[arg-type]
    units = LAYER.units
    one.measure(one.default_candidate(LAYER), [Point(0, units), Point(1, units - 1)])
    found = {(sample.side, sample.other_units): set(sample.latency_us) for sample in profile.samples()}
    assert found == {("gpu", 0): {kernel_us}, ("gpu", 1): {3.0}, ("cpu", units - 1): {2.0}}


class SlowlyLaunching(FakeSession):
    """A GPU whose launches follow each other every 8 us at first, and then every 5; three units of a kernel take 30."""

    def __init__(self, slow: int) -> None:
        super().__init__()
        self.looks, self.slow = 0, slow

    def measure(self, module: bytes, points: Sequence[Point], **_: object) -> Measurement:
        self.looks += 1
        launch_us = 8.0 if self.looks <= self.slow else 5.0
        walls_us = {3: 30.0, 4: 9.5}
        times = [
            PointTimes(0, p.gpu_units, (), (9.0,) * p.repeats, (walls_us.get(p.gpu_units, launch_us),) * p.repeats)
            for p in points
        ]
        return Measurement(tuple(times), 0.0)


@pytest.mark.parametrize(("slow", "looks"), [(0, 1), (2, 3), (1000, 10)])
def test_launches_that_are_slow_for_a_while_are_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: int, looks: int
) -> None:
    monkeypatch.setattr(measurer, "_PAUSE_S", 0.0)
    profile = Profile.create(tmp_path / "p", {**FACTS, "device_type": "gpu"})
    profile.describe(planning={"overheads": asdict(Overheads(5.0, -2.0, 5.0))})
    session = SlowlyLaunching(slow)
    one = Tuner(session, profile, target_for(profile.facts))  # type: ignore[arg-type]
    one.measure(one.default_candidate(LAYER), [Point(0, 1), Point(0, 3)])
    assert [set(sample.latency_us) for sample in profile.samples()] == [{7.0}, {32.0}]
    assert session.looks == looks, "once launches are as quick as they can be, nothing is looked at again"


def test_a_kernel_that_is_longer_than_slow_launches_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurer, "_PAUSE_S", 0.0)
    profile = Profile.create(tmp_path / "p", {**FACTS, "device_type": "gpu"})
    profile.describe(planning={"overheads": asdict(Overheads(5.0, -2.0, 5.0))})
    one = Tuner(SlowlyLaunching(1000), profile, target_for(profile.facts))  # type: ignore[arg-type]
    one.measure(one.default_candidate(LAYER), [Point(0, 4)])
    (sample,) = profile.samples()
    assert set(sample.latency_us) == {11.5}


def test_a_gpu_whose_smallest_kernel_outlasts_a_launch_has_no_interval(tmp_path: Path) -> None:
    assert gpu_overheads(tmp_path / "p", [90.0] * 8) == Overheads(0.0, gpu_alone_us=-2.0, gpu_interval_us=0.0)


def test_launches_are_told_apart_by_the_kernel_of_the_same_trial(tmp_path: Path) -> None:
    """A first kernel that takes as long as later launches do must not hide these."""
    kernels_us = [8.0, 30.0, 5.0, 5.0, 5.0]
    assert gpu_overheads(tmp_path / "p", kernels_us) == Overheads(1.0, -2.0, gpu_interval_us=6.0)


def test_launches_that_bound_a_gpu_are_found_when_it_has_worked_for_a_while(tmp_path: Path) -> None:
    profile = Profile.create(tmp_path / "p", {**FACTS, "device_type": "gpu"})
    one = Tuner(LaunchingSession([9.0, 4.0, 4.0]), profile, target_for(profile.facts))  # type: ignore[arg-type]
    profile.describe(planning={"overheads": asdict(Overheads(5.0, -2.0))})
    measure_launches_again(one)
    assert profile.planning == {"overheads": asdict(Overheads(5.0, -2.0, gpu_interval_us=6.0))}


def test_a_larger_layer_that_the_gpu_refuses_ends_no_calibration(tmp_path: Path) -> None:
    class Refusing(LaunchingSession):
        def measure(self, module: bytes, points: Sequence[Point], **_: object) -> Measurement:
            if self.kernels_us[0] == REFUSED:
                self.kernels_us.pop(0)
                raise WrongError("the result is wrong")
            return super().measure(module, points)

    profile = Profile.create(tmp_path / "p", {**FACTS, "device_type": "gpu"})
    one = Tuner(Refusing([4.0, 7.0, REFUSED, 7.0, 4.0, 4.0, 4.0]), profile, target_for(profile.facts))  # type: ignore[arg-type]
    assert measure_overheads(one, time_smallest_layer(one), math.inf) == Overheads(5.0, -1.0, gpu_interval_us=6.0)


def test_a_tuning_too_short_to_read_much_keeps_what_an_earlier_one_read(tmp_path: Path) -> None:
    one, stored = tuner(RunningSession(1018.0), tmp_path / "p"), {side: asdict(own) for side, own in READS.items()}
    stored = {side: {**own, "amount_bytes": (1e8, 2e8)} for side, own in stored.items()}
    memory = {"weights": (known := {"alone": {"cpu": 1, "gpu": 2}, "concurrent": {"cpu": 1, "gpu": 2}})}
    memory |= {"activations": known, "cache_bytes": 1}
    one.profile.describe(planning={"reads": stored, "memory_model": memory})
    calibrate(one, until=time.monotonic())
    assert isinstance(one.profile.planning, dict)
    assert json.loads(json.dumps(one.profile.planning["reads"])) == json.loads(json.dumps(stored))
    assert one.profile.planning["memory_model"]["weights"]["alone"]["gpu"] == READS["gpu"].alone[-1]


@pytest.mark.parametrize(("driver", "interval_us"), [("1", 5.0), ("2", 6.0)])
def test_what_was_found_with_another_driver_does_not_count(
    driver: str, interval_us: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {**FACTS, "device_type": "gpu"}
    with Profile.create(tmp_path / "p", facts) as first:
        first.add_samples(samples_of(CANDIDATE, [times(GPU_ALONE)]))
        first.describe(planning={"overheads": asdict(Overheads(9.0, -1.0, gpu_interval_us=5.0))})
    monkeypatch.setattr(calibration, "measure_reads", lambda *_: READS)
    rates = Rates(*({"cpu": 1.0, "gpu": 1.0},) * 2)
    monkeypatch.setattr(calibration, "measure_memory", lambda *_: MemoryModel(rates, rates, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        profile = Profile.open(tmp_path / "p", {**facts, "driver_version": driver})
    one = Tuner(LaunchingSession([4.0, 7.0, 30.0, 4.0, 4.0, 4.0]), profile, target_for(profile.facts))  # type: ignore[arg-type]
    calibrate(one, until=math.inf)
    assert isinstance(profile.planning, dict) and profile.planning["overheads"]["gpu_interval_us"] == interval_us


@pytest.mark.slow
def test_activations_cost_what_a_network_takes_beyond_its_layers(tmp_path: Path) -> None:
    slow, slower = RunningSession(1018.0), RunningSession(2018.0)
    rates = [
        measure_memory(tuner(session, tmp_path / str(number)), Overheads(0.0, 0.0), READS, LATE).activations
        for number, session in enumerate((slow, slower))
    ]
    assert rates[0].alone["cpu"] == pytest.approx(2 * rates[1].alone["cpu"])  # nine layers of 2 us, 1000 and 2000 more
    assert rates[0].concurrent["cpu"] == rates[0].concurrent["gpu"] > 0
    shares = {frozenset(split.values()) == frozenset({0}) for split in slow.splits}
    assert shares == {True, False}


@pytest.mark.slow
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
        rates.append(
            measure_memory(tuner(session, tmp_path / str(first)), Overheads(0.0, 0.0), READS, LATE).activations
        )
    assert rates[0] == rates[1] == rates[2]


@pytest.mark.slow
def test_a_network_that_seems_faster_than_its_layers_leaves_rates_finite(tmp_path: Path) -> None:
    rates = measure_memory(tuner(RunningSession(1.0), tmp_path / "p"), Overheads(0.0, 0.0), READS, LATE).activations
    assert all(0 < rate < float("inf") for rate in (*rates.alone.values(), *rates.concurrent.values()))


class ReadingSession(FakeSession):
    """Reads at 40 GB/s what fits 4 MiB of cache, at 10 beyond, and at half of it while both sides read."""

    def measure(self, module: bytes, points: Sequence[Point], **_: object) -> Measurement:
        def us(units: int, other_units: int) -> float:
            rate = 40e3 if units + other_units <= (4 << 20) / _UNIT_BYTES else 10e3
            return 1.0 + units * _UNIT_BYTES / rate * (2 if other_units else 1)

        times = []
        for point in points:
            cpu_us, gpu_us = us(point.cpu_units, point.gpu_units), us(point.gpu_units, point.cpu_units)
            halves = ((cpu_us,) * bool(point.cpu_units), (gpu_us,) * bool(point.gpu_units))
            times.append(PointTimes(point.cpu_units, point.gpu_units, *halves, (cpu_us + gpu_us,)))
        return Measurement(tuple(times), 0.0)


_UNIT_BYTES = 128 << 10


def test_caches_are_found_by_reading(tmp_path: Path) -> None:
    found = measure_reads(tuner(ReadingSession(), tmp_path / "p"), LATE)
    for side in ("cpu", "gpu"):
        reads = found[side]
        assert reads.amount_bytes[0] == _UNIT_BYTES and reads.amount_bytes[-1] >= 32 << 20
        assert reads.alone[0] == pytest.approx(40e3, rel=0.01) and reads.alone[-1] == pytest.approx(10e3, rel=0.01)
        assert reads.concurrent[0] == pytest.approx(20e3, rel=0.01)
        assert reads.concurrent[-1] == pytest.approx(5e3, rel=0.01)
        assert reads.cached_bytes == 2 << 20, "each side has half of the cache where both read"
        middle_us = reads.us(np.array([3e6, 3e6]), np.array([0.0, 1.0]))
        assert 3e6 / 40e3 < middle_us[0] < 3e6 / 10e3 and middle_us[1] > middle_us[0]


@pytest.mark.parametrize("told_mib", slow_except([0, 32, 480], 1))
def test_what_the_system_tells_of_caches_only_says_how_much_to_read(told_mib: int, tmp_path: Path) -> None:
    facts = {**FACTS, "cache_bytes": {"l3": told_mib << 20}}
    one = Tuner(ReadingSession(), Profile.create(tmp_path / "p", facts), target_for(facts))  # type: ignore[arg-type]
    found = measure_reads(one, LATE)
    assert found["cpu"].cached_bytes == 2 << 20
    assert 32 << 20 <= found["cpu"].amount_bytes[-1] <= 128 << 20
    memory = measure_memory(tuner(RunningSession(1.0), tmp_path / "q"), Overheads(0.0, 0.0), found, LATE)
    assert (memory.cache_bytes, memory.weights.alone["cpu"]) == (4 << 20, pytest.approx(10e3, rel=0.01))


def test_reads_survive_json() -> None:
    reads = Reads.of([1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert Reads.from_json(json.loads(json.dumps(asdict(reads)))) == reads
    with pytest.raises(ValueError, match="not as many"):
        Reads.from_json({"amount_bytes": [1.0], "alone": [], "concurrent": []})
