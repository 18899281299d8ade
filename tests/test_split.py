import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_device import (
    HARDWARE,
    OVERHEADS,
    best_us,
    latency_us,
    optimum_us,
    some_layers,
    total_us,
    trained,
    variants,
)
from test_network_plan import network

from tvm_coexec.errors import InputError, MeasurementError
from tvm_coexec.layers import Conv2d, Linear, Variant
from tvm_coexec.planning.division import SYNC_MARGIN, Overheads
from tvm_coexec.planning.measured import plan_measured
from tvm_coexec.planning.plan import LayerPlan
from tvm_coexec.planning.split import Planner
from tvm_coexec.prediction.memory_model import MemoryModel, Rates
from tvm_coexec.prediction.noise import Noise
from tvm_coexec.prediction.predictors import LatencyPredictor
from tvm_coexec.prediction.residuals import Residuals
from tvm_coexec.profile.records import Sample


def planner(split_us=OVERHEADS.split_us, **settings_):
    return Planner(trained("cpu"), trained("gpu"), HARDWARE, Overheads(split_us), **settings_)


@pytest.mark.slow
def test_plans_of_unseen_shapes_are_close_to_the_optimum():
    ratios = []
    for layer in some_layers(25, seed=7):
        plan = planner().plan_layer("fc", layer)
        planned_us = total_us(layer, plan.cpu_units, plan.cpu, plan.gpu)
        ratios.append(planned_us / optimum_us(layer))
        alone_us = min(best_us(layer, side, layer.units, 0) for side in ("cpu", "gpu"))
        assert planned_us <= 1.1 * alone_us, layer
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) < 1.04
    assert max(ratios) < 1.4


def test_a_large_layer_is_split_and_the_reason_says_how_well():
    plan = planner().plan_layer("fc", Linear(197, 768, 3072))
    assert 0.4 < plan.cpu_units / plan.layer.units < 0.6
    assert plan.total_us == pytest.approx(max(plan.cpu_us, plan.gpu_us) + OVERHEADS.split_us)
    speedup = float(re.fullmatch(r"split: (.*) times as fast as the cpu alone \(.* us\)", plan.reason)[1])
    assert 1.7 < speedup < 2


def test_a_layer_that_does_not_pay_for_synchronisation_stays_on_one_side():
    plan = planner().plan_layer("fc", Linear(1, 64, 64))
    assert (plan.cpu_units, plan.gpu) == (2, None)
    assert plan.total_us == plan.cpu_us
    assert "4.0 us of it synchronisation" in plan.reason


def test_one_unit_cannot_be_divided():
    plan = planner().plan_layer("fc", Linear(500, 4000, 30))
    assert plan.cpu_units == 1
    assert plan.reason == "cpu alone: one unit cannot be divided"


def test_a_gain_that_is_less_likely_than_a_loss_is_not_taken():
    layer = Linear(197, 768, 768)
    split = planner(0.0).plan_layer("fc", layer)
    alone = planner(math.inf).plan_layer("fc", layer)
    dear = Overheads(
        (alone.total_us - split.total_us) / (1 + SYNC_MARGIN) - 2.0
    )  # all but two microseconds of the gain
    sure = planner(dear.split_us)
    assert sure.plan_layer("fc", layer).reason.startswith("split")
    uncertain = replace(sure, **{side: uncertain_by(getattr(sure, side), 0.2) for side in ("cpu", "gpu")})
    plan = uncertain.plan_layer("fc", layer)
    assert plan.cpu_units in (0, layer.units)
    assert re.search(r"alone: a split may be 1\.\d\d times as fast, but with a chance of [1-4]\d% alone", plan.reason)


def test_halves_carry_what_their_times_may_be_off_by():
    layer = Linear(197, 768, 3072)
    uncertain = replace(planner(), **{side: uncertain_by(getattr(planner(), side), 0.1) for side in ("cpu", "gpu")})
    plan = uncertain.plan_layer("fc", layer)
    assert plan.cpu_interval_us == pytest.approx((plan.cpu_us * math.exp(-0.1), plan.cpu_us * math.exp(0.1)))
    assert plan.gpu_interval_us == pytest.approx((plan.gpu_us * math.exp(-0.1), plan.gpu_us * math.exp(0.1)))


def uncertain_by(predictor: LatencyPredictor, log_bound: float) -> LatencyPredictor:
    """The same predictor, off by a factor either way."""

    class Constant:
        def log_bounds(self, matrix):
            return np.full(len(matrix), -log_bound), np.full(len(matrix), log_bound)

    return replace(predictor, uncertainty=Constant(), residuals=Residuals())


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 512), st.integers(64, 4096), st.integers(64, 8192))
def test_no_split_that_was_not_taken_is_predicted_to_be_much_better(m, k, n):
    layer = Linear(m, k, n)
    plan = planner().plan_layer("fc", layer)
    others = [planner().plan_split("fc", layer, cpu_units).total_us for cpu_units in range(0, layer.units + 1, 7)]
    assert plan.total_us <= 1.02 * min(others) + SYNC_MARGIN * OVERHEADS.split_us


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 512), st.integers(64, 4096), st.integers(64, 4096))
def test_dearer_synchronisation_never_makes_a_plan_cheaper_or_splits_more(m, k, n):
    layer = Linear(m, k, n)
    plans = [planner(split_us).plan_layer("fc", layer) for split_us in (0.0, 10.0, 1000.0)]
    totals = [plan.total_us for plan in plans]
    is_split = [0 < plan.cpu_units < layer.units for plan in plans]
    assert is_split == sorted(is_split, reverse=True)
    assert all(later >= earlier * 0.95 for earlier, later in itertools.pairwise(totals))


@pytest.mark.parametrize("cpu_units, sides", [(0, (False, True)), (5, (True, True)), (24, (True, False))])
def test_a_split_that_is_asked_for_is_given_the_best_variants(cpu_units, sides):
    layer = Linear(50, 768, 768)
    plan = planner().plan_split("fc", layer, cpu_units)
    assert (plan.cpu is not None, plan.gpu is not None) == sides
    assert plan.cpu_units == cpu_units
    for side, variant, units in (("cpu", plan.cpu, cpu_units), ("gpu", plan.gpu, 24 - cpu_units)):
        if variant:
            assert latency_us(layer, side, variant, units, 24 - units) <= 1.15 * best_us(layer, side, units, 24 - units)


def test_a_split_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="'fc' has 24 units, the CPU cannot compute 25; choose 0 to 24"):
        planner().plan_split("fc", Linear(50, 768, 768), 25)


def test_a_variant_that_was_measured_on_the_layer_is_preferred_to_one_that_is_predicted_to_be_a_little_faster():
    layer = Linear(50, 768, 768)
    times_us = {variant: best_time_of(layer, variant) for variant in variants(layer, "cpu")}
    best = min(times_us, key=times_us.get)
    for other, others_us in times_us.items():
        known = planner(measured={("cpu", layer): frozenset({other})}).plan_split("fc", layer, 24)
        assert known.cpu == (other if others_us <= 1.1 * times_us[best] else best)


def test_another_kernel_than_the_first_is_chosen_where_it_is_predicted_to_gain_much():
    chosen_first = []
    for layer in some_layers(12, seed=3):
        first, *_ = variants(layer, "cpu")
        chosen = planner().plan_split("fc", layer, layer.units).cpu
        chosen_first.append(chosen == first)
        if chosen != first:
            assert 1.1 * best_time_of(layer, chosen) <= best_time_of(layer, first)
    assert any(chosen_first) and not all(chosen_first)


def best_time_of(layer, variant):
    without = frozenset(variants(layer, "cpu")) - {variant}
    return planner(failed={("cpu", layer): without}).plan_split("fc", layer, layer.units).cpu_us


def test_a_variant_that_failed_on_the_layer_is_never_chosen():
    layer = Linear(50, 768, 768)
    chosen = planner().plan_split("fc", layer, 12)
    failed = {("cpu", layer): frozenset({chosen.cpu}), ("gpu", layer): frozenset({chosen.gpu})}
    other = planner(failed=failed).plan_split("fc", layer, 12)
    assert other.cpu != chosen.cpu and other.gpu != chosen.gpu
    assert 1.1 * other.total_us >= chosen.total_us


def test_the_side_whose_times_other_work_lengthens_most_is_chosen_only_where_it_is_that_much_faster():
    layer = Linear(1, 64, 64)
    quiet = planner(1e6)
    times_us = {
        "cpu": quiet.plan_split("fc", layer, layer.units).total_us,
        "gpu": quiet.plan_split("fc", layer, 0).total_us,
    }
    faster, slower = sorted(times_us, key=times_us.get)
    ratio = times_us[slower] / times_us[faster]
    for factor, chosen in ((0.99 * ratio, faster), (1.01 * ratio, slower)):
        noise = Noise(alone={faster: factor, slower: 1.0})
        plan = replace(quiet, noise=noise).plan_layer("fc", layer)
        assert ("cpu" if plan.cpu_units else "gpu") == chosen


def test_a_layer_takes_longer_in_a_network_and_alone_it_does_not():
    layer = Linear(4, 4096, 4096)
    rates = Rates({"cpu": 1e3, "gpu": 1e3}, {"cpu": 500.0, "gpu": 500.0})
    one = planner(memory_model=MemoryModel(rates, rates, cache_bytes=layer.weight_bytes))
    alone = one.for_network(network(layer)).plan_split("fc", layer, 64)
    assert alone == planner().plan_split("fc", layer, 64)
    inside = one.for_network(network(layer, layer)).plan_split("fc", layer, 64)
    half_bytes = layer.weight_bytes / 2
    assert inside.cpu_us > alone.cpu_us + 0.9 * (math.hypot(alone.cpu_us, half_bytes / 500.0) - alone.cpu_us)
    assert inside.cpu_us > 4 * 4 * 4096 / 500.0


def test_weights_that_outgrow_the_cache_when_they_are_transformed_come_from_memory():
    layer = Conv2d(28, 28, 256, 256, 3, padding=1)
    winograd, direct = Variant.make("winograd", m=4), Variant.make("direct", channels=32)
    rates = Rates({"cpu": 1e3, "gpu": 1e3}, {"cpu": 500.0, "gpu": 500.0})
    one = planner(memory_model=MemoryModel(rates, rates, cache_bytes=12 * layer.weight_bytes))  # a quarter of it counts
    inside = one.for_network(network(layer, layer))
    assert not inside.streams_weights

    def streams(cpu, gpu, cpu_units, layer=layer):
        plan = LayerPlan("conv", layer, cpu_units, cpu, gpu, 1.0, 1.0, 1.0, "")
        return inside.for_kernels([plan]).streams_weights

    assert streams(winograd, None, layer.units) and not streams(direct, None, layer.units)
    assert streams(winograd, winograd, 4)
    assert not streams(winograd, direct, 4), "a half of 4 times the weights, and a half of them as they are"
    lines = replace(layer, axis="lines")
    assert not streams(direct, direct, 1, lines) and streams(winograd, winograd, 1, lines)
    small = replace(lines, in_channels=160)  # 5/8 of the weights: transformed 2.5 of the 3 that stay, and as they are
    assert not streams(winograd, winograd, 1, small)
    assert streams(winograd, direct, 1, small), "by lines each side reads all weights of its kind"
    alone = LayerPlan("conv", layer, layer.units, winograd, None, 1.0, 0.0, 1.0, "")
    assert not one.for_kernels([alone]).streams_weights, "a layer by itself finds everything in a cache"


MEASURED = Linear(50, 768, 128)
CPU_VARIANT, OTHER_CPU_VARIANT = variants(MEASURED, "cpu")[:2]
GPU_VARIANT = variants(MEASURED, "gpu")[0]


def measured(side, variant, units, other_units, *times_us, layer=MEASURED):
    return Sample(layer, side, variant, units, other_units, times_us)


def test_the_best_measured_split_is_taken():
    samples = [
        measured("cpu", CPU_VARIANT, 4, 0, 100.0),
        measured("gpu", GPU_VARIANT, 4, 0, 110.0),
        measured("cpu", CPU_VARIANT, 2, 2, 70.0, 50.0, 51.0),
        measured("cpu", OTHER_CPU_VARIANT, 2, 2, 90.0, 20.0, 60.0),
        measured("gpu", GPU_VARIANT, 2, 2, 55.0),
        measured("cpu", CPU_VARIANT, 1, 3, 1.0),
        measured("gpu", GPU_VARIANT, 1, 3, 1.0),
        measured("gpu", GPU_VARIANT, 2, 0, 1.0),
        measured("cpu", CPU_VARIANT, 4, 0, 1.0, layer=Linear(50, 768, 128, ("bias",))),
    ]
    plan = plan_measured("fc", MEASURED, samples, OVERHEADS)
    assert (plan.cpu_units, plan.cpu, plan.gpu) == (2, CPU_VARIANT, GPU_VARIANT)
    assert (plan.cpu_us, plan.gpu_us, plan.total_us) == (51.0, 55.0, 59.0)
    assert plan.reason == "the best of 3 measured splits"
    alone = plan_measured("fc", MEASURED, samples, Overheads(split_us=60.0))
    assert (alone.cpu_units, alone.gpu, alone.total_us) == (4, None, 100.0)


def test_a_layer_that_was_never_measured_is_named():
    samples = [measured("cpu", CPU_VARIANT, 2, 2, 1.0)]
    with pytest.raises(MeasurementError, match=r"no split of layer 'fc'.*tune this layer"):
        plan_measured("fc", MEASURED, samples, OVERHEADS)
