"""Reports: every kind of layer that can be measured has a name in a table's cell."""

import pytest
from reporting import describe

from tvm_coexec.layers import AnyLayer, Linear, Product, RowWise
from tvm_coexec.workloads import NAMED, layers_named


@pytest.mark.parametrize("name", NAMED)
def test_every_layer_of_a_named_set_has_a_description(name: str) -> None:
    assert all(describe(layer) for layer in layers_named(name))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Linear(3, 64, 128, ("bias", "relu")), "3×64×128 relu"),
        (RowWise("softmax", 5, 9), "softmax 5×9"),
        (Product(7, 7, 32), "product 1×7×7×32"),
    ],
    ids=lambda value: getattr(value, "op", None),
)
def test_descriptions(layer: AnyLayer, expected: str) -> None:
    assert describe(layer) == expected
