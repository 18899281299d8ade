"""What a predictor remembers of the kernels that it was trained with."""

import json

import numpy as np
import pytest
from synthetic_device import HARDWARE

from tvm_coexec import schedules
from tvm_coexec.layers import Linear, Variant
from tvm_coexec.prediction.residuals import Residuals
from tvm_coexec.profile.records import Sample

SEEN, NEW = Linear(8, 64, 96, ("bias",)), Linear(8, 64, 128, ("bias",))
FIRST, SECOND, THIRD = schedules.family(SEEN).variants(SEEN, "cpu", HARDWARE)[:3]


def sample(variant: Variant, units: int) -> Sample:
    return Sample(SEEN, "cpu", variant, units, 3 - units, (10.0,), None if units == 3 else variant)


def residuals(*errors: tuple[Variant, float]) -> Residuals:
    samples = [sample(variant, 1 + number % 3) for number, (variant, _) in enumerate(errors)]
    return Residuals.of(samples, np.array([error for _, error in errors]), np.ones(len(errors)))


def test_kernels_that_always_take_longer_are_expected_to() -> None:
    found = residuals(*[(FIRST, 0.2)] * 100, *[(SECOND, -0.1)] * 100)
    first, second, third, new = found.factors([(SEEN, FIRST), (SEEN, SECOND), (SEEN, THIRD), (NEW, FIRST)])
    assert first == pytest.approx(np.exp(0.2), rel=0.01)
    assert second == pytest.approx(np.exp(-0.1), rel=0.01)
    assert second < third < first, "other kernels of the layer are as far off as those that were measured"
    assert new == 1


def test_few_or_noisy_samples_prove_little() -> None:
    (once,) = residuals((FIRST, 0.3)).factors([(SEEN, FIRST)])
    assert 1 < once < np.exp(0.3)
    noisy = Residuals.of([sample(FIRST, 1)], np.array([0.3]), np.array([0.01]))
    assert 1 < noisy.factors([(SEEN, FIRST)])[0] < 1.01


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_kernel_alone_is_told_apart_only_where_samples_agree_on_it(noise: float) -> None:
    """Of either kernel the half alone takes 1.2 times as long as expected, and concurrent ones less."""
    rng = np.random.default_rng(0)
    samples = [sample(variant, units) for variant in (FIRST, SECOND) for units in (1, 2, 3, 3) * 20]
    errors = np.array([0.2 if one.units == 3 else -0.2 for one in samples]) * (1 - noise)
    errors, counts = errors + noise * rng.normal(0, 0.3, len(samples)), np.ones(len(samples))
    found = Residuals.of(samples, errors, counts).telling_alone(samples, errors, counts)
    concurrent, alone = (found.factors([(SEEN, FIRST)], alone=is_alone)[0] for is_alone in (False, True))
    if noise:
        assert not found.alone and alone == concurrent
    else:
        assert alone == pytest.approx(np.exp(0.2), rel=0.02) and concurrent == pytest.approx(np.exp(-0.2), rel=0.02)
    assert Residuals.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_it_survives_a_round_trip() -> None:
    found = residuals((FIRST, 0.2), (SECOND, -0.1), (FIRST, 0.1))
    assert Residuals.from_json(json.loads(json.dumps(found.to_json()))) == found
