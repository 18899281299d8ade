"""Attention and placed rows: every split on both processors against float64, in modules of one layer."""

from typing import Any

import numpy as np
import pytest
from slow import slow_except
from small_modules import one_layer

from tvm_coexec.layers import Attention, Hardware, PlaceRows, layer_from_json, layer_to_json
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module

GPU = Hardware(16, 32, "gpu", 64)
LAYERS = [
    Attention(1, 3, 197, 197, 64, 0.125, (576,) * 3, (0, 192, 384)),
    Attention(2, 5, 7, 9, 24, 0.2, (130, 120, 125), (10, 0, 5), "constant"),
    Attention(2, 4, 33, 128, 32, 0.17, (128,) * 3, mask="input"),
    Attention(1, 12, 5, 20, 24, 0.2, (288,) * 3),
    Attention(1, 3, 4, 3, 8, 1.0, (24,) * 3),
    Attention(1, 4, 9, 9, 16, 0.25, (256,) * 3, (0, 16, 32), value_dim=32, head_steps=(64, 64, 64)),
    Attention(2, 3, 5, 7, 12, 0.3, (36, 20, 40), (0, 3, 1), value_dim=20, head_steps=(12, 0, 7)),
    Attention(2, 2, 19, 7, 32, 0.2, (64,) * 3, mask="constant", mask_sizes=(1, 1, 19)),
    Attention(2, 3, 6, 17, 24, 0.2, (72,) * 3, mask="input", mask_sizes=(2, 3, 6)),
    Attention(2, 3, 6, 40, 24, 0.2, (72,) * 3, mask="input", mask_sizes=(1, 3, 1)),
    PlaceRows(2, 6, 7, 70, 1, True, ("bias", "residual", "sigmoid")),
    PlaceRows(2, 9, 1, 64, 0),
    PlaceRows(1, 9, 4, 33, -2, True, ("gelu",)),
]


def module(layer: Any, device: Device, gpu: Hardware | None = None) -> Module:
    return Module(one_layer(layer, device, gpu), device)


@pytest.mark.parametrize("layer", slow_except(LAYERS, 1, 10), ids=str)
def test_every_split(layer: Any, device: Device) -> None:
    built, units = module(layer, device), layer.units
    for cpu in sorted({0, 1, units - 1, units}):
        assert built.check_step(0, cpu, units - cpu) < built.error_bound(0)
    if units > 1:
        assert built.check_step(0, 0, 1) < built.error_bound(0)


@pytest.mark.parametrize("layer", slow_except([LAYERS[1], LAYERS[6], LAYERS[8], LAYERS[10]], 1), ids=str)
def test_kernels_for_a_gpu(layer: Any, device: Device) -> None:
    built = module(layer, device, GPU)
    assert built.check_step(0, 0, layer.units) < built.error_bound(0)


def test_where_all_keys_are_masked_they_count_alike(device: Device) -> None:
    layer = Attention(2, 2, 4, 5, 32, 0.2, (64,) * 3, mask="input")
    built = module(layer, device)
    rng = np.random.default_rng(0)
    x, keys, values, mask = (rng.standard_normal(shape).astype(np.float32) for shape in built.input_shapes.values())
    mask[1] = np.finfo(np.float32).min  # as exporters write it
    for cpu_units in (0, layer.units):
        built.set_splits({"layer": cpu_units})
        result = built(x, keys, values, mask).reshape(2, 4, 64)
        expected = values.reshape(2, 5, 64)[1].mean(axis=0)
        np.testing.assert_allclose(result[1], np.broadcast_to(expected, (4, 64)), rtol=1e-5, atol=1e-6)


def test_what_may_look_at_nothing_has_zeros(device: Device) -> None:
    layer = Attention(1, 2, 4, 5, 32, 0.2, (64,) * 3, mask="input", mask_sizes=(1, 1, 4), empty_is_zero=True)
    built = module(layer, device)
    rng = np.random.default_rng(0)
    x, keys, values, mask = (rng.standard_normal(shape).astype(np.float32) for shape in built.input_shapes.values())
    mask[2], mask[3, 1:] = -np.inf, -np.inf
    for cpu_units in (0, layer.units):
        built.set_splits({"layer": cpu_units})
        result = built(x, keys, values, mask)
        assert np.all(result[2] == 0) and np.all(result[:2] != 0)
        np.testing.assert_allclose(result[3], values[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_minus_infinity_alone_gives_no_number(device: Device) -> None:
    layer = Attention(1, 2, 4, 5, 32, 0.2, (64,) * 3, mask="input", mask_sizes=(1, 1, 4))
    built = module(layer, device)
    rng = np.random.default_rng(0)
    x, keys, values, mask = (rng.standard_normal(shape).astype(np.float32) for shape in built.input_shapes.values())
    mask[2], mask[3, 1:] = -np.inf, -np.inf
    for cpu_units in (0, layer.units):
        built.set_splits({"layer": cpu_units})
        result = built(x, keys, values, mask)
        assert np.all(np.isnan(result[2]))
        np.testing.assert_allclose(result[3], values[0], rtol=1e-5, atol=1e-6)


def test_units_are_heads_that_fill_tiles() -> None:
    units = {24: (4, 96), 32: (1, 32), 48: (2, 96), 64: (1, 64)}
    for head_dim, (heads, channels) in units.items():
        layer = Attention(1, 12, 5, 5, head_dim, 1.0, (12 * head_dim,) * 3)
        assert (layer.unit_heads, layer.unit_channels, layer.units) == (heads, channels, 12 // heads)
    assert Attention(1, 3, 5, 5, 33, 1.0, (99,) * 3).units == 1


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers_become_plain_values_and_back(layer: Any) -> None:
    assert layer_from_json(layer_to_json(layer)) == layer


def test_impossible_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="do not lie within 64 channels"):
        Attention(1, 2, 5, 5, 32, 1.0, (64,) * 3, (0, 1, 0))
    with pytest.raises(ValueError, match="unknown mask"):
        Attention(1, 2, 5, 5, 32, 1.0, (64,) * 3, mask="causal")
    with pytest.raises(ValueError, match=r"mask of \(1, 1, 4\)"):
        Attention(1, 2, 5, 5, 32, 1.0, (64,) * 3, mask="constant", mask_sizes=(1, 1, 4))
    with pytest.raises(ValueError, match="no row of"):
        PlaceRows(1, 4, 4, 8, 4)


@pytest.mark.slow
def test_a_wrong_scale_is_found(device: Device) -> None:
    built = module(LAYERS[0], device)
    fields = built._package.manifest.steps[0].layer
    fields["scale"] = 0.13
    assert built.check_step(0, 1, 2) > built.error_bound(0)
    assert np.isfinite(built.outputs["y"]).all()
