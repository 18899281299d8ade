"""Rows and heads that work-groups of a GPU compute, in modules of one layer against float64, on CPU devices."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from slow import slow_except
from test_attention import LAYERS, module

from tvm_coexec import schedules
from tvm_coexec.layers import Attention, Hardware, RowWise
from tvm_coexec.runtime.device import Device

GPU = Hardware(16, 32, "gpu", 64)
ROWS = [
    RowWise("layer_norm", 9, 70, ("residual",), 1e-5),
    RowWise("layer_norm", 3, 768, ("gelu",), 1e-5),
    RowWise("softmax", 17, 10),
    RowWise("softmax", 2, 300, ("relu",)),
    RowWise("map", 8, 33, ("bias", "silu", "residual")),
    RowWise("map", 3, 40, ("sigmoid",)),
]


CASES = [*ROWS, *(one for one in LAYERS if isinstance(one, Attention))]


@pytest.mark.parametrize("layer", slow_except(CASES, 4, 8), ids=str)
def test_every_split(layer: Any, device: Device) -> None:
    built, units = module(layer, device, GPU), layer.units
    for cpu in sorted({0, 1, units - 1}):
        assert built.check_step(0, cpu, units - cpu) < built.error_bound(0)


@pytest.mark.slow
def test_a_query_without_a_key_has_zeros_or_no_number(device: Device) -> None:
    for empty_is_zero in (False, True):
        layer = Attention(1, 2, 4, 37, 32, 0.2, (64,) * 3, mask="input", mask_sizes=(1, 1, 4))
        layer = replace(layer, empty_is_zero=empty_is_zero)
        built = module(layer, device, GPU)
        rng = np.random.default_rng(0)
        x, keys, values, mask = (rng.standard_normal(shape).astype(np.float32) for shape in built.input_shapes.values())
        mask[2], mask[3, :36] = -np.inf, -np.inf
        built.set_splits({"layer": 0})
        result = built(x, keys, values, mask)
        assert np.all(result[2] == 0) if empty_is_zero else np.all(np.isnan(result[2]))
        np.testing.assert_allclose(result[3], values[36], rtol=1e-5, atol=1e-6)
        assert np.isfinite(result[:2]).all()


@pytest.mark.parametrize("hardware", [GPU, Hardware(16, 32, "gpu", 1024, 132, 48 << 10)], ids=str)
def test_work_groups_fit_the_device(hardware: Hardware) -> None:
    large = Attention(1, 4, 64, 64, 512, 0.1, (2048,) * 3)
    assert {one.implementation for one in schedules.attention.variants(large, "gpu", hardware)} == {"heads"}
    for layer in (LAYERS[0], *ROWS):
        family = schedules.family(layer)
        groups = [
            one for one in family.variants(layer, "gpu", hardware) if one.implementation in ("groups", "group_rows")
        ]
        assert groups and groups[0] == family.default_variant(layer, "gpu", hardware)
        assert all(family.dispatch(layer, "gpu", one).group_size <= hardware.max_group_size for one in groups)
