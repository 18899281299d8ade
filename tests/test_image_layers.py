"""Layers that only images have: their sizes, and what is refused of them."""

from collections.abc import Callable

import pytest

from tvm_coexec.layers import Concat, Elementwise, LocalNorm, Pool


def test_a_pool_counts_its_windows() -> None:
    pool = Pool("max", 9, 10, 40, (3, 2), (2, 1), (1, 0, 0, 1), batch=2)
    assert (pool.out_h, pool.out_w, pool.units) == (4, 10, 2)
    assert pool.flops == 2 * 4 * 10 * 40 * 6
    assert pool.activation_bytes == 4 * 2 * 40 * (90 + 40)
    assert Pool("max", 9, 9, 8, (2, 2), dilation=(4, 8)).out_w == 1


def test_units_are_tiles_of_output_channels() -> None:
    assert Concat(4, 4, (20, 20, 30)).units == 3
    assert Elementwise("add", (1, 4, 4, 33), (1, 1, 1, 1)).units == LocalNorm(4, 4, 33, 5, 1.0, 0.75, 1.0).units == 2


def test_a_factor_of_one_pixel_is_read_once() -> None:
    assert Elementwise("multiply", (1, 4, 4, 8), (1, 1, 1, 8)).activation_bytes == 4 * 8 * 33
    assert Elementwise("multiply", (1, 4, 4, 8), (1, 4, 4, 8)).activation_bytes == 4 * 8 * 48


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pool("median", 4, 4, 4, (2, 2)), "unknown pooling 'median'"),
        (lambda: Pool("max", 4, 4, 4, (2, 2), padding=(2, 0, 0, 0)), "less than its window"),
        (lambda: Pool("max", 4, 4, 4, (5, 2)), "does not fit into 4×4"),
        (lambda: Pool("max", 4, 4, 4, (2, 2), epilogue=("swish",)), "unknown epilogue step"),
        (lambda: Concat(4, 4, (3, 0)), "at least 1"),
        (lambda: Elementwise("add", (1, 0, 4, 3), (1, 1, 4, 3)), "at least 1"),
        (lambda: Elementwise("power", (1, 2, 4, 3), (1, 1, 4, 3)), "unknown element-wise kind 'power'"),
        (lambda: Elementwise("add", (1, 2, 4, 3), (1, 3, 4, 3)), "cannot be combined"),
    ],
)
def test_impossible_layers_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
