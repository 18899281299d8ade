"""Weights that come from memory and activations that are handed over: when, and what it costs."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from tvm_coexec.layers import Conv2d, Linear, Variant
from tvm_coexec.prediction.memory_model import MemoryModel, Rates

LAYER = Linear(1, 1024, 1024, ())
WHOLE = Variant.make("direct", channels=32)
WEIGHTS = Rates({"cpu": 20.0, "gpu": 10.0}, {"cpu": 10.0, "gpu": 5.0})
ACTIVATIONS = Rates({"cpu": 40.0, "gpu": 40.0}, {"cpu": 8.0, "gpu": 8.0})
MEMORY_MODEL = MemoryModel(WEIGHTS, ACTIVATIONS, cache_bytes=4 * LAYER.weight_bytes)


def lengthened(side: str, variant: Variant, warm_us: float, units: int, concurrent: int) -> float:
    times = MEMORY_MODEL.read_weights(
        side, LAYER, variant, *(np.array([float(x)]) for x in (warm_us, units, concurrent))
    )
    return float(times[0])


def test_weights_come_from_memory_once_a_network_has_more_than_its_share_of_the_cache() -> None:
    assert not MEMORY_MODEL.streams_weights(LAYER.weight_bytes)
    assert MEMORY_MODEL.streams_weights(2 * LAYER.weight_bytes)


def test_a_half_that_only_reads_takes_as_long_as_its_weights() -> None:
    units = LAYER.units // 2
    assert lengthened("cpu", WHOLE, 0.0, units, 0) == pytest.approx(LAYER.weight_bytes / 2 / 20.0)
    assert lengthened("gpu", WHOLE, 0.0, units, units) == pytest.approx(LAYER.weight_bytes / 2 / 5.0)


def test_reading_hides_behind_much_computing() -> None:
    warm_us = 100 * LAYER.weight_bytes / 20.0
    assert lengthened("cpu", WHOLE, warm_us, LAYER.units, 0) == pytest.approx(warm_us, rel=1e-3)


def test_a_kernel_that_reads_half_a_tile_at_a_time_reads_it_twice() -> None:
    half = Variant.make("direct", channels=16)
    assert lengthened("cpu", half, 0.0, 8, 0) == pytest.approx(2 * lengthened("cpu", WHOLE, 0.0, 8, 0))


def test_by_lines_both_sides_read_all_weights_at_once() -> None:
    layer = Conv2d(28, 28, 64, 64, 1, axis="lines")
    times = MEMORY_MODEL.read_weights("cpu", layer, WHOLE, *(np.array([x, x]) for x in (0.0, 7.0, 7.0)))
    assert times == pytest.approx([layer.weight_bytes / 20.0] * 2)


def test_handing_over_takes_as_long_as_the_activations_that_a_half_touches() -> None:
    layer = Linear(8, 64, 128, ())
    alone, concurrent = MEMORY_MODEL.hand_over_us("cpu", layer, np.array([4.0, 2.0]), np.array([0.0, 2.0]))
    assert alone == pytest.approx(4 * 8 * (64 + 128) / 40.0)
    assert concurrent == pytest.approx(4 * 8 * (64 + 64) / 8.0)


def test_a_memory_model_survives_json() -> None:
    assert MemoryModel.from_json(json.loads(json.dumps(asdict(MEMORY_MODEL)))) == MEMORY_MODEL
