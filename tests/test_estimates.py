import numpy as np
import pytest

from tvm_coexec.layers import Conv2d, Linear, Pool, Variant
from tvm_coexec.prediction.base_time import BaseTime
from tvm_coexec.prediction.estimates import estimate_us, fit_estimates
from tvm_coexec.profile.records import Sample

VARIANT = Variant.make("direct", rows=1)


def sample(side, m, k, n):
    layer = Linear(m, k, n)
    moved_bytes = layer.weight_bytes + layer.activation_bytes
    time_us = 2 + layer.flops / 1e5 + moved_bytes / 2e4
    return Sample(layer, side, VARIANT, layer.units, 0, (time_us,) * 3)


def test_speed_and_bandwidth_are_those_of_the_samples():
    samples = [sample("cpu", m, k, n) for m in (1, 8, 64) for k in (64, 512, 2048) for n in (64, 512, 2048)]
    pool = Pool("max", 112, 112, 64, (3, 3), (2, 2), (1, 1, 1, 1))
    expected_us = 2 + pool.flops / 1e5 + pool.activation_bytes / 2e4
    estimates = fit_estimates(samples)
    assert set(estimates) == {"cpu"}
    whole_us, half_us = estimate_us(estimates["cpu"], pool, np.array([2, 1]))
    assert whole_us == pytest.approx(expected_us, rel=0.1)
    assert half_us == pytest.approx((expected_us + 2) / 2, rel=0.1)


def test_by_lines_a_half_reads_all_weights():
    estimate = BaseTime((("bytes", 1.0),))
    layer = Conv2d(28, 28, 8, 8, 1, axis="lines")
    expected = layer.weight_bytes + layer.activation_bytes / 2
    assert estimate_us(estimate, layer, np.array([7])) == pytest.approx([expected])
