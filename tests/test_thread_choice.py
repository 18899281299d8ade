"""The number of the CPU's threads is learned and chosen, layer by layer, like a variant."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic_device as synthetic
from test_guided import LAYER, FakePredictor
from test_tuning import FACTS, FakeSession

from tvm_coexec.compiler.target import target_for
from tvm_coexec.layers import Conv2d, Linear, Variant, layer_from_json
from tvm_coexec.module.package import Package
from tvm_coexec.planning.from_profile import planner as planner_of
from tvm_coexec.planning.plan import LayerPlan, Plan
from tvm_coexec.planning.split import Planner
from tvm_coexec.prediction.features import THREAD_NAMES, Processor
from tvm_coexec.prediction.predictors import LatencyPredictor, train
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Point, PointTimes, Sample
from tvm_coexec.rpc.outcomes import Measurement
from tvm_coexec.tuning.fitting import fit
from tvm_coexec.tuning.guided import first_candidates, search_variants
from tvm_coexec.tuning.tuner import Tuner, thread_counts

CORES, COUNTS = 4, (0, 1, 2)
JOINING_US, SHARED = 6.0, 0.1
WIDE_FACTS = {**FACTS, "cpu_cores": [4, 5, 6, 7]}


def latency_us(layer: Linear, variant: Variant, units: int, other_units: int) -> float:
    """A CPU whose threads each compute whole units, share a part of the time, and take a while to be joined."""
    one_us = synthetic.latency_us(layer, "cpu", variant, units, other_units)
    threads = variant.threads or CORES
    return one_us * (SHARED + (1 - SHARED) * math.ceil(units / threads) / units) + JOINING_US * (threads - 1)


def samples(layers: Sequence[Linear]) -> list[Sample]:
    measured = synthetic.measure(list(layers), "cpu")
    found = []
    for number, sample in enumerate(measured):
        variant = replace(sample.variant, threads=COUNTS[number % len(COUNTS)])
        us = latency_us(sample.layer, variant, sample.units, sample.other_units)
        found.append(replace(sample, variant=variant, latency_us=(us,) * 3))
    return found


@lru_cache
def trained() -> LatencyPredictor:
    layers = synthetic.some_layers(60, seed=4)
    return train(samples(layers), "cpu", Processor(CORES, synthetic.PROCESSOR.reads))


def planner(threads: tuple[int, ...]) -> Planner:
    return Planner(trained(), synthetic.trained("gpu"), synthetic.HARDWARE, synthetic.OVERHEADS, threads=threads)


def true_us(plan: LayerPlan) -> float:
    cpu_us = latency_us(plan.layer, plan.cpu, plan.cpu_units, plan.gpu_units) if plan.cpu else 0.0
    gpu_us = synthetic.total_us(plan.layer, plan.cpu_units, None, plan.gpu) if plan.gpu else 0.0
    return max(cpu_us, gpu_us) + (synthetic.OVERHEADS.split_us if plan.cpu and plan.gpu else 0.0)


@pytest.mark.slow
def test_layers_that_were_never_measured_get_the_threads_that_suit_them() -> None:
    layers = synthetic.some_layers(40, seed=9)
    ratios = {
        fixed: np.array([true_us(planner((fixed,)).plan_layer("fc", layer)) for layer in layers])
        / np.array([true_us(planner(COUNTS).plan_layer("fc", layer)) for layer in layers])
        for fixed in COUNTS
    }
    for found in ratios.values():
        assert np.exp(np.log(found).mean()) > 1.0 and np.quantile(found, 0.1) > 0.93
    assert ratios[1].max() > 1.5 and ratios[0].max() > 1.15


def test_small_layers_are_left_to_fewer_threads_than_large_ones() -> None:
    small, large = (
        planner(COUNTS).plan_split("fc", layer, layer.units) for layer in (Linear(4, 64, 256), Linear(256, 1024, 1024))
    )
    assert small.cpu is not None and large.cpu is not None
    assert (small.cpu.threads, large.cpu.threads) == (1, 0)


def test_a_predictor_knows_of_threads_only_where_there_was_a_choice() -> None:
    assert set(THREAD_NAMES) <= set(trained().features.names)
    assert not set(THREAD_NAMES) & set(synthetic.trained("cpu").features.names)


def test_the_table_of_a_plan_says_how_many_threads_it_wants() -> None:
    layers = {"a": Linear(4, 64, 256), "b": Linear(256, 1024, 1024)}
    plans = [planner(COUNTS).plan_split(name, layer, layer.units) for name, layer in layers.items()]
    plan = Plan("device", "svm", tuple(plans), 1.0)
    assert "threads of the CPU: 1 for a; one on each core for others (1)" in str(plan).splitlines()
    assert Plan.from_json(plan.to_json()) == plan
    assert "threads" not in str(replace(plan, layers=tuple(plans[1:])))


@pytest.mark.parametrize(
    ("cores", "clusters", "counts"),
    [
        ([1], [], (0,)),
        ([1, 3], [], (0, 1)),
        ([4, 5, 6, 7], [[4, 5, 6, 7]], (0, 2, 1)),
        ([7, 4, 5, 6], [[4, 5, 6], [7]], (0, 2, 1)),
        ([5, 6, 7, 1, 2, 3, 4], [[1, 2, 3, 4], [5, 6, 7]], (0, 4, 3, 2, 1)),
        (list(range(16)), [], (0, 8, 4, 2, 1)),
    ],
)
def test_counts_that_are_worth_measuring(cores: list[int], clusters: list[list[int]], counts: tuple[int, ...]) -> None:
    facts = {"cpu_cores": cores, "clusters": [{"cores": one} for one in clusters]}
    assert thread_counts(facts) == counts


@pytest.fixture
def wide_tuner(tmp_path: Path) -> Tuner:
    return Tuner(FakeSession(), Profile.create(tmp_path / "p", WIDE_FACTS), target_for(WIDE_FACTS))  # type: ignore[arg-type]


def test_tuning_measures_every_count_without_more_candidates(wide_tuner: Tuner) -> None:
    layers = [Linear(rows, 64, 128) for rows in range(2, 40)]
    candidates = [wide_tuner.candidates(layer) for layer in layers]
    assert all(len(own) <= 2 and own[0].cpu.threads == 0 for own in candidates)
    assert {one.cpu.threads for own in candidates for one in own} == set(COUNTS)
    assert all(one.gpu.threads == 0 for own in candidates for one in own)


def test_the_layers_of_a_model_are_measured_by_every_count(wide_tuner: Tuner) -> None:
    layer = Conv2d(14, 14, 64, 64, (3, 3), padding=(1, 1, 1, 1))
    by = {one.cpu.threads for one in first_candidates(wide_tuner, layer)}
    assert by == set(COUNTS)
    assert {one.threads for one in wide_tuner.ways(layer, "gpu")} == {0}
    assert len(wide_tuner.ways(layer, "cpu")) == 3 * len(wide_tuner.variants(layer, "cpu"))


@pytest.mark.slow
def test_a_search_offers_other_counts_of_kernels_that_were_measured_alone(wide_tuner: Tuner) -> None:
    default, other, *_ = wide_tuner.variants(LAYER, "cpu")
    by_one, other_by_one = replace(default, threads=1), replace(other, threads=1)
    expected_us = {default: 60.0, by_one: 50.0, other: 55.0, other_by_one: 40.0}
    predictors: Any = {
        "cpu": FakePredictor(expected_us),
        "gpu": FakePredictor({wide_tuner.default_candidate(LAYER).gpu: 1.0}),
    }
    wide_tuner.measure(wide_tuner.default_candidate(LAYER), wide_tuner.points(LAYER))
    measured: list[Variant] = []
    add = wide_tuner.profile.add_samples

    def note(found: Sequence[Sample], device: str) -> None:
        measured.extend(dict.fromkeys(one.variant for one in found if one.side == "cpu"))
        add(found, device)

    wide_tuner.profile.add_samples = note  # type: ignore[method-assign]
    search_variants(wide_tuner, [LAYER], lambda: predictors, lambda: False)
    assert measured == [by_one, other, other_by_one]


class TimingSession(FakeSession):
    """A device that computes with as many threads as the module says, each of which takes a while to be joined."""

    def measure(self, module: bytes, points: list[Point], **_: object) -> Measurement:
        with tempfile.NamedTemporaryFile() as file:
            file.write(module)
            file.flush()
            (step,) = Package.read(file.name).manifest.steps
        layer = layer_from_json(step.layer)
        cpu, gpu = (Variant.from_json(half.variant) for half in (step.cpu, step.gpu) if half)
        times = []
        for p in points:
            cpu_us = latency_us(layer, cpu, p.cpu_units, p.gpu_units) if p.cpu_units else 0.0
            gpu_us = synthetic.latency_us(layer, "gpu", gpu, p.gpu_units, p.cpu_units) if p.gpu_units else 0.0
            repeated = [(us,) * p.repeats if us else () for us in (cpu_us, gpu_us, max(cpu_us, gpu_us))]
            times.append(PointTimes(p.cpu_units, p.gpu_units, *repeated))
        return Measurement(tuple(times), 0.0)


@pytest.mark.slow
def test_what_a_device_was_measured_to_do_by_each_count_reaches_the_plan(tmp_path: Path) -> None:
    profile = Profile.create(tmp_path / "p", WIDE_FACTS)
    tuner = Tuner(TimingSession(), profile, target_for(WIDE_FACTS))  # type: ignore[arg-type]
    small, large = Linear(2, 64, 128), Linear(64, 256, 512)
    for layer in (small, Linear(3, 64, 128), large, Linear(70, 256, 512)):
        for candidate in first_candidates(tuner, layer):
            tuner.measure(candidate, tuner.points(layer))
    rates = {"alone": {"cpu": 1e4, "gpu": 1e4}, "concurrent": {"cpu": 1e4, "gpu": 1e4}}
    memory = {"weights": rates, "activations": rates, "cache_bytes": 1 << 30}
    profile.describe(planning={"overheads": asdict(synthetic.OVERHEADS), "memory_model": memory})
    fit(profile)
    planner = planner_of(profile, tuner.target.hardware)
    assert planner.threads == COUNTS
    plans = [planner.plan_split("fc", layer, layer.units) for layer in (small, large)]
    assert [plan.cpu.threads for plan in plans if plan.cpu] == [1, 0]
    profile.close()
