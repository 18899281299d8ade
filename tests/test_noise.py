"""How much longer halves take on average than what is learned of them."""

import pytest

from tvm_coexec.layers import Linear, Variant
from tvm_coexec.prediction.noise import Noise
from tvm_coexec.profile.records import Sample

LAYER = Linear(8, 64, 64)
VARIANT = Variant.make("direct", rows=1)
QUIET, BUSY = (10.0,) * 20, (10.0,) * 10 + (14.0,) * 10


def sample(side: str, other_units: int, times_us: tuple[float, ...]) -> Sample:
    return Sample(LAYER, side, VARIANT, 1, other_units, times_us)


def test_the_median_sample_says_how_much_longer_halves_take() -> None:
    found = Noise.of([sample("cpu", 0, QUIET), sample("cpu", 1, QUIET), *(sample("cpu", 1, BUSY) for _ in range(2))])
    assert found.alone["cpu"] == pytest.approx(1.0)
    assert found.concurrent["cpu"] == pytest.approx(1.2)


def test_a_side_without_samples_takes_what_is_predicted() -> None:
    found = Noise.of([sample("cpu", 1, BUSY)])
    assert found == Noise({"cpu": 1.0, "gpu": 1.0}, {"cpu": found.concurrent["cpu"], "gpu": 1.0})


def test_only_halves_of_a_split_are_lengthened_as_such() -> None:
    noise = Noise({"cpu": 1.1, "gpu": 1.2}, {"cpu": 1.5, "gpu": 2.0})
    assert noise.factors(is_split=True) == {"cpu": 1.5, "gpu": 2.0}
    assert noise.factors(is_split=False) == {"cpu": 1.1, "gpu": 1.2}
