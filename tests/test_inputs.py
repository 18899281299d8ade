"""What a module is called with: arrays however they lie in memory, or a line that says what it wants."""

import math
import re
import tempfile
from typing import Any

import numpy as np
import pytest
from small_modules import chain, expected

from tvm_coexec.errors import InputError
from tvm_coexec.graph import Node
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module

X = np.random.default_rng(0).standard_normal((5, 64), np.float32)


class Own(np.ndarray):
    """A user's class of arrays."""


def read_only() -> np.ndarray:
    array = X.copy()
    array.flags.writeable = False
    return array


def in_a_file() -> np.ndarray:
    with tempfile.TemporaryFile() as file:
        array = np.memmap(file, np.float32, "w+", shape=X.shape)
    array[:] = X
    return array


LYING = {
    "by columns": np.asfortranarray(X),
    "backwards": X[::-1].copy()[::-1],
    "with gaps": np.repeat(np.repeat(X, 2, 0), 3, 1)[::2, ::3],
    "transposed": X.T.copy().T,
    "one row for all": np.broadcast_to(X[:1], X.shape),
    "unaligned": np.frombuffer(b"\0" + X.tobytes(), np.uint8)[1:].view(np.float32).reshape(X.shape),
    "read only": read_only(),
    "in a file": in_a_file(),
    "a matrix": X.view(np.matrix),
    "a user's class": X.view(Own),
    "masked": np.ma.masked_array(X, mask=X > 0),
}
"""Arrays of the type and shape that are wanted; what a mask hides counts as it is."""

WRONG: dict[str, Any] = {
    **{dtype: X.astype(dtype) for dtype in ("float64", "float16", ">f4", "int32", "complex64", "object", "bool", "U")},
    "a record": np.zeros(X.shape, [("a", "f4")]),
    "a row too few": X[:4],
    "no rows": X[:0],
    "flat": X.ravel(),
    "an axis more": X[None],
    "a number": np.float32(1),
    "a list": X.tolist(),
    "nothing": None,
}


@pytest.fixture
def module(device: Device) -> tuple[Module, list[Node]]:
    built, nodes = chain(device, 2, *X.shape)
    return Module(built, device), nodes


def test_an_array_may_lie_in_memory_as_it_likes(module: tuple[Module, list[Node]]) -> None:
    called, nodes = module
    for how, array in LYING.items():
        plain = np.array(array, np.float32, order="C", subok=False)
        result = called(array)
        np.testing.assert_array_equal(result, called(plain), strict=True, err_msg=how)
        assert np.allclose(result, expected(nodes, plain), atol=1e-4), how


def test_what_has_another_type_or_shape_is_refused_and_the_next_call_is_right(
    module: tuple[Module, list[Node]],
) -> None:
    called, nodes = module
    for what, array in WRONG.items():
        try:
            called(array)
            pytest.fail(f"{what} is taken")
        except InputError as error:
            assert re.match(r"input 't0' must be a float32 array of shape \(5, 64\), not ", str(error)), what
    assert np.allclose(called(t0=X), expected(nodes, X), atol=1e-4)


def test_a_result_is_the_callers_own_and_a_view_of_the_module_may_be_an_input(
    module: tuple[Module, list[Node]],
) -> None:
    called, nodes = module
    first = called(X)
    kept = first.copy()
    called.inputs["t0"][:] = 2 * X
    called.run()
    np.testing.assert_array_equal(first, kept)
    assert np.allclose(called.outputs["t2"], expected(nodes, 2 * X), atol=1e-4)
    assert np.allclose(called(called.inputs["t0"]), expected(nodes, 2 * X), atol=1e-4)


def test_splits_that_there_are_not_change_nothing(module: tuple[Module, list[Node]]) -> None:
    called, nodes = module
    before = called.splits
    for units in (4, -1, 1.5, "a", None, math.nan, 2**40):
        with pytest.raises(InputError, match=r"layer 'layer1' has \d units; the CPU cannot compute "):
            called.set_splits({"layer0": 0, "layer1": units})
        assert called.splits == before and np.allclose(called(X), expected(nodes, X), atol=1e-4)
    called.set_splits({"layer1": np.int64(1)})
    assert called.splits["layer1"] == 1 and np.allclose(called(X), expected(nodes, X), atol=1e-4)
