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
    return Sample(SEEN, "cpu", variant, units, 3 - units, None if units == 3 else variant, (10.0,))


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


def test_it_survives_a_round_trip() -> None:
    found = residuals((FIRST, 0.2), (SECOND, -0.1), (FIRST, 0.1))
    assert Residuals.from_json(json.loads(json.dumps(found.to_json()))) == found
