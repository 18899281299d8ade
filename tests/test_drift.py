"""How much slower a machine was at one moment than at another."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_device import HARDWARE, PROCESSOR, measure, some_layers, variants

from tvm_coexec.layers import Conv2d, Linear
from tvm_coexec.prediction.drift import at_usual_speed, drift_percent
from tvm_coexec.profile.records import Sample
from tvm_coexec.schedules import family

LAYER = Linear(8, 64, 128)
SAMPLE = Sample(LAYER, "cpu", variants(LAYER, "cpu")[0], 2, 0, (10.0, 12.0))


def measured(slowness: float, canary: float) -> Sample:
    return replace(SAMPLE, latency_us=(10.0 * slowness, 12.0 * slowness), canary_us=300.0 * canary)


def test_what_was_measured_while_a_side_was_slow_is_corrected() -> None:
    slowness = [1.5 if number < 8 else 1.0 for number in range(40)]
    rng = np.random.default_rng(0)
    samples = [measured(slow, slow * rng.uniform(0.999, 1.001)) for slow in slowness]
    for sample in at_usual_speed(samples):
        assert sample.latency_us == pytest.approx(SAMPLE.latency_us, rel=0.01)
    assert drift_percent(samples, at_usual_speed(samples)) == pytest.approx(100 * 0.5 * 8 / 40, rel=0.05)


def test_a_device_that_is_slow_beside_others_is_corrected_alone() -> None:
    samples = [
        replace(measured(slow, slow * (1 + number / 1e4)), run=device)
        for number in range(12)
        for device, slow in ((1, 1.0), (2, 8.0 if 4 <= number < 9 else 1.0), (3, 1.1))
    ]
    usual = [sample.median_us for sample in at_usual_speed(samples)]
    assert usual == pytest.approx([usual[0]] * len(usual), rel=0.01)


def test_runs_of_one_speed_tell_it_together_and_those_of_another_do_not() -> None:
    canaries = [1.0, 1.0, 1.04, 1.0, 1.0, 8.0, 8.4, 8.0, 1.0, 1.0, 1.0]
    slowness = [8.0 if canary > 2 else 1.0 for canary in canaries]
    samples = [measured(slow, canary) for slow, canary in zip(slowness, canaries, strict=True)]
    for sample in at_usual_speed(samples):
        assert sample.latency_us == pytest.approx(SAMPLE.latency_us, rel=1e-6)


def test_what_was_slow_for_a_single_trial_is_corrected() -> None:
    for lone in (0, 3, 6):
        slowness = [8.0 if number == lone else 1.0 + number / 1e4 for number in range(7)]
        for sample in at_usual_speed([measured(slow, slow) for slow in slowness]):
            assert sample.latency_us == pytest.approx(SAMPLE.latency_us, rel=0.01)


def test_what_was_measured_without_a_canary_has_the_speed_before_or_after_that_is_less() -> None:
    told = [0.0, 1.0, 0.0, 1.01, 1.0, 0.0, 8.0, 0.0, 8.08, 0.0, 0.0, 1.0, 1.01, 0.0]
    slow = [1.0, 1.0, 1.0, 1.00, 1.0, 1.0, 8.0, 8.0, 8.00, 1.0, 1.0, 1.0, 1.00, 1.0]
    for sample in at_usual_speed([measured(*one) for one in zip(slow, told, strict=True)]):
        assert sample.latency_us == pytest.approx(SAMPLE.latency_us, rel=0.02)


def test_no_run_of_a_noisy_canary_is_believed_alone() -> None:
    rng = np.random.default_rng(0)
    canaries = np.exp(rng.normal(0, 0.15, 200)) * np.where(np.arange(200) < 100, 1.0, 8.0)
    samples = [measured(1.0 if number < 100 else 8.0, canary) for number, canary in enumerate(canaries)]
    logs = np.log([sample.median_us for sample in at_usual_speed(samples)])
    assert np.std(logs) < 0.12


def test_each_side_has_a_speed_of_its_own_and_without_a_canary_nothing_is_known() -> None:
    gpus = [replace(SAMPLE, side="gpu", canary_us=50.0 * factor) for factor in (1.0, 8.0, 8.1, 1.0)]
    assert at_usual_speed([SAMPLE, *gpus, SAMPLE])[:: len(gpus) + 1] == [SAMPLE, SAMPLE]
    gpu = gpus[0]
    assert at_usual_speed([SAMPLE, gpu, SAMPLE]) == [SAMPLE, gpu, SAMPLE]
    assert drift_percent([SAMPLE, gpu], at_usual_speed([SAMPLE, gpu])) == drift_percent([], []) == 0.0


def test_what_the_canary_tells_is_believed_where_the_samples_bear_it_out() -> None:
    layers = some_layers(12, seed=5)
    lone, phase = layers[3], layers[7:9]
    quiet = [replace(sample, canary_us=300.0) for sample in measure(layers, "cpu")]
    told, truth = [], []
    for number, sample in enumerate(quiet):
        is_slow = sample.layer in phase
        slow = tuple(us * (8.0 if is_slow else 1.0) for us in sample.latency_us)
        canary_us = 300.0 * (56.0 if sample.layer == lone else 8.0 if is_slow else 1 + number % 7 / 1e3)
        told.append(replace(sample, latency_us=slow, canary_us=canary_us))
        truth.append(sample.median_us)
    found = [sample.median_us for sample in at_usual_speed(told, {"cpu": PROCESSOR})]
    assert found == pytest.approx(truth, rel=0.01)
    believed = [sample.median_us for sample in at_usual_speed(told)]
    assert max(us / other for us, other in zip(truth, believed, strict=True)) > 40
    assert 0.0 < drift_percent(told, at_usual_speed(told, {"cpu": PROCESSOR})) < 700.0


def test_a_canary_is_believed_of_kernels_that_no_other_sample_is_like() -> None:
    layer = Conv2d(8, 8, 32, 32, (3, 3))
    variant = family(layer).default_variant(layer, "cpu", HARDWARE)
    alone = replace(measured(8.0, 8.0), layer=layer, variant=variant)
    samples = [*(measured(1.0, 1 + number / 1e4) for number in range(6)), alone]
    for some in (samples, [alone]):
        assert at_usual_speed(some, {"cpu": PROCESSOR}) == at_usual_speed(some)
    assert at_usual_speed(samples)[-1].latency_us == pytest.approx(SAMPLE.latency_us, rel=0.01)


def test_a_canary_is_believed_where_layers_differ_as_much_as_it_tells() -> None:
    rng, layers = np.random.default_rng(0), some_layers(24, seed=5)
    factors = dict(zip(layers, np.exp(rng.normal(0, 1.5, len(layers))), strict=True))
    quiet = [
        replace(
            sample,
            latency_us=tuple(us * factors[sample.layer] for us in sample.latency_us),
            canary_us=300.0 + layers.index(sample.layer) / 1e3,
        )
        for sample in measure(layers, "cpu", variants_per_layer=2)
    ]
    for slow in layers[::4]:
        told = [
            replace(one, latency_us=tuple(8 * us for us in one.latency_us), canary_us=2400.0)
            if one.layer == slow
            else one
            for one in quiet
        ]
        found = [sample.median_us for sample in at_usual_speed(told, {"cpu": PROCESSOR})]
        assert found == pytest.approx([sample.median_us for sample in quiet], rel=0.01)
