"""How long a planned network is expected to take."""

import math
from dataclasses import replace

import pytest

from tvm_coexec.layers import Linear, Variant
from tvm_coexec.planning.expectation import expected_time
from tvm_coexec.planning.plan import LayerPlan
from tvm_coexec.planning.simulation import Costs
from tvm_coexec.prediction.noise import Noise
from tvm_coexec.prediction.surroundings import Stretch

VARIANT = Variant.make("direct", rows=4)
SURE = LayerPlan("fc", Linear(8, 64, 128), 2, VARIANT, VARIANT, 100.0, 100.0, 104.0, "split")
UNCERTAIN = replace(SURE, cpu_interval_us=(90.0, 120.0), gpu_interval_us=(95.0, 110.0))
COSTS = Costs(4.0)


def chain(layer: LayerPlan, count: int) -> list[LayerPlan]:
    """Layers of as many shapes, each of which is off by itself."""
    return [replace(layer, layer=Linear(8, 64 + number, 128)) for number in range(count)]


def test_nothing_is_uncertain_where_nothing_is_known_to_be() -> None:
    time = expected_time([()], [SURE], COSTS, Noise())
    assert time.interval_us == (time.us, time.us) == (104.0, 104.0)


def test_the_later_half_of_an_uncertain_split_decides() -> None:
    time = expected_time([()], [UNCERTAIN], COSTS, Noise())
    assert 90 < time.low_us < 104 < time.us < time.high_us < 130


def test_errors_of_different_layers_make_up_for_each_other_and_those_of_one_kernel_do_not() -> None:
    reads = [(), (), (), ()]
    alone = replace(UNCERTAIN, cpu_units=4, gpu=None, gpu_us=0.0, gpu_interval_us=(0.0, 0.0))
    different = expected_time(reads, chain(alone, 4), COSTS, Noise())
    alike = expected_time(reads, [alone] * 4, COSTS, Noise())
    assert alike.us == pytest.approx(400.0, rel=0.02)
    assert alike.high_us - alike.low_us > 1.5 * (different.high_us - different.low_us)


def test_what_a_network_takes_beyond_its_halves_lengthens_it_and_its_interval() -> None:
    stretch = Stretch(0.2, -0.1, 0.1)
    time = expected_time([()], [SURE], COSTS, Noise(), stretch)
    assert time.us == pytest.approx(104.0 * math.exp(0.2), rel=0.01)
    assert (time.low_us, time.high_us) == pytest.approx((time.us * math.exp(-0.1), time.us * math.exp(0.1)), rel=0.03)
