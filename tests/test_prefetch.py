"""Weights that are fetched ahead: which kernels do so, and what. Their results are checked with all others."""

import re

import pytest

from tvm_coexec import schedules
from tvm_coexec.layers import AnyLayer, Conv2d, Hardware, Linear
from tvm_coexec.schedules.prefetch import with_fetch

CPU_DEVICE = Hardware(64, 32, "cpu")


@pytest.mark.parametrize("side", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("layer", "fetched"),
    [
        (Linear(7, 64, 64), False),
        (Linear(8, 64, 64), True),
        (Linear(256, 64, 64), True),
        (Linear(257, 64, 64), False),
        (Conv2d(14, 14, 32, 64, 1), True),
        (Conv2d(28, 28, 32, 64, 1), False),
    ],
    ids=str,
)
def test_weights_are_fetched_where_rows_are_few(layer: AnyLayer, fetched: bool, side: str) -> None:
    family = schedules.family(layer)
    found = {
        "prefetch" in dict(v.params) for v in family.variants(layer, side, CPU_DEVICE) if v.implementation == "direct"
    }
    assert found == {fetched}
    assert "prefetch" not in dict(family.variants(layer, "gpu", Hardware(64, 32, "gpu"))[0].params)


@pytest.mark.parametrize("side", ["cpu", "gpu"])
@pytest.mark.parametrize("order", [0, 1])
def test_the_next_tile_is_fetched_where_a_tile_stays(order: int, side: str) -> None:
    layer = Linear(197, 768, 96)
    found = schedules.family(layer).variants(layer, side, CPU_DEVICE)
    variant = next(v for v in found if (v["order"], v["k_split"], v["unroll"]) == (order, 1, 1))
    (launch,) = schedules.family(layer).build(layer, side, variant)
    levels = re.findall(r"T.address_of\(.*\), 0, (\d)", str(launch.module))
    assert levels == ["3", "3", *["2"] * (order == 0)]  # two lines of a tile soon, and one of the next


def test_only_what_fetches_gets_the_definition() -> None:
    assert with_fetch("__kernel void k() {}") == "__kernel void k() {}"
    assert with_fetch("COEXEC_FETCH(p, 0, 3);").startswith("#ifndef COEXEC_FETCH")
