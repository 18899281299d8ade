"""CPU kernels of every family against float64, whatever the variant, the epilogue and the range of units."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm
from slow import slow_except

from tvm_coexec import schedules
from tvm_coexec.layers import (
    ACTIVATIONS,
    ROW_BLOCK,
    TILE,
    Hardware,
    Linear,
    RowWise,
    Variant,
    channel_constants,
    row_tiles,
)
from tvm_coexec.verification.reference import evaluate, relative_error

HARDWARE = Hardware(64, 32, "cpu")
LAYERS = [
    Linear(1, 1, 1),
    Linear(5, 33, 65, ("bias",)),
    Linear(13, 64, 96, ("bias", "gelu", "residual")),
    Linear(1, 256, 130, ("bias", "silu")),
    Linear(7, 31, 512, ("residual", "relu")),
    Linear(3, 20, 40, ("bias", "gelu_tanh")),
    RowWise("layer_norm", 9, 70, ("residual",), 1e-5),
    RowWise("layer_norm", 3, 32, ("gelu",), 1e-5),
    RowWise("softmax", 17, 10),
    RowWise("softmax", 2, 96, ("relu",)),
    RowWise("map", 8, 33, ("bias", "silu", "residual")),
    RowWise("map", 3, 40, ("sigmoid",)),
    RowWise("map", 9, 40, ("scale", "bias", "prelu", "scale", "bias")),
    Linear(5, 33, 65, ("bias", "leaky_relu(0.1)", "scale", "residual", "bias", "clip(-0.5,0.25)")),
    Linear(3, 20, 40, ("prelu", "exp", "prelu", "clip(0.5,2.0)")),
]


_NUMBERS = {
    "clip": "-0.5,0.75",
    "elu": "0.5,1.0",
    "hard_sigmoid": "0.2,0.5",
    "inverse_root": "0.001",
    "leaky_relu": "0.01",
}


def _with_numbers(name: str) -> str:
    return f"{name}({_NUMBERS[name]})" if name in _NUMBERS else name


def aligned(array: np.ndarray) -> np.ndarray:
    room = np.empty(array.size + 32, np.float32)
    start = (-room.ctypes.data // 4) % 32
    view = room[start : start + array.size].reshape(array.shape)
    view[:] = array
    return view


def rows_of(array: np.ndarray, rows: int, channels: int) -> np.ndarray:
    return array.reshape(array.shape[0], -1)[:rows, :channels]


class Case:
    """A compiled CPU kernel with random operands."""

    def __init__(self, layer: Linear | RowWise, variant: Variant) -> None:
        self.layer = layer
        family = schedules.family(layer)
        (launch,) = family.build(layer, "cpu", variant)
        self.function = tvm.compile(launch.module, target="llvm").mod["main"]
        rng = np.random.default_rng(7)
        k = layer.k if isinstance(layer, Linear) else layer.n
        names = family.operand_names(layer, variant)
        self.operands: dict[str, np.ndarray] = {"input": rng.normal(size=(layer.m, k))}
        if "residual" in names:
            self.operands["residual"] = rng.normal(size=(layer.m, layer.n))
        if "weights" in names:
            self.operands["weights"] = rng.normal(size=(k, layer.n))
        for name in ("gamma", "beta", *channel_constants(layer.epilogue)):
            if name in names:
                self.operands[name] = rng.normal(size=layer.n)
        packed = family.pack(layer, self.operands, variant)
        self.buffers = []
        assert names == tuple(operand.name for operand in launch.operands)
        for name, operand in zip(names, launch.operands, strict=True):
            buffer = aligned(np.zeros(operand.shape, np.float32))
            if name in packed:
                buffer[:] = packed[name]
            elif name in self.operands:
                rows_of(buffer, layer.m, self.operands[name].shape[1])[:] = self.operands[name]
            self.buffers.append(buffer)

    def run(self, begin: int, count: int) -> np.ndarray:
        self.buffers[-1][:] = np.nan
        arguments: list[Any] = [tvm.runtime.from_dlpack(buffer) for buffer in self.buffers]
        self.function(*arguments, begin, count)
        return rows_of(self.buffers[-1], self.layer.m, row_tiles(self.layer.n) * TILE)

    def expected(self) -> np.ndarray:
        return evaluate(self.layer, self.operands)


@cache
def default_case(layer: Linear | RowWise) -> Case:
    return Case(layer, schedules.family(layer).default_variant(layer, "cpu", HARDWARE))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_default_variant_for_every_range_of_units(layer: Linear | RowWise) -> None:
    case = default_case(layer)
    expected, units = case.expected(), layer.units
    unit = TILE if isinstance(layer, Linear) else ROW_BLOCK
    for begin, end in {(0, units), (0, 1), (0, units - 1), (units - 1, units), (1, units), (0, 0)}:
        result = case.run(begin, max(end - begin, 0))
        inside, outside = slice(begin * unit, end * unit), [slice(0, begin * unit), slice(end * unit, None)]
        if isinstance(layer, Linear):
            written, untouched = result[:, : layer.n][:, inside], [result[:, part] for part in outside]
            wanted = expected[:, inside]
        else:
            written, untouched = result[inside, : layer.n], [result[part, : layer.n] for part in outside]
            wanted = expected[inside]
        if end > begin:
            assert relative_error(written, wanted) < 1e-5
        assert all(np.all(np.isnan(part)) for part in untouched)


@pytest.mark.parametrize("layer", slow_except([Linear(13, 64, 96, ("bias",)), Linear(1, 64, 64)], 1), ids=str)
def test_every_variant_of_the_search_space(layer: Linear) -> None:
    variants = schedules.family(layer).variants(layer, "cpu", HARDWARE)
    assert len(variants) == len(set(variants)) > 3
    for variant in variants:
        case = Case(layer, variant)
        assert relative_error(case.run(0, layer.units)[:, : layer.n], case.expected()) < 1e-5, str(variant)


ENDING = [*map(_with_numbers, ACTIVATIONS), "clip(2.0,inf)", "elu(1.6733,1.0507)"]


@pytest.mark.parametrize("activation", slow_except(ENDING, *range(0, len(ENDING), 2)))
def test_activations_hold_at_the_ends_of_their_range(activation: str) -> None:
    layer = RowWise("map", 1, 64, (activation,))
    case = Case(layer, schedules.family(layer).default_variant(layer, "cpu", HARDWARE))
    values = np.concatenate([np.linspace(-12, 12, 58), [-1e3, 1e3, -88.5, 88.5, 0.0, -0.0]])
    values = np.minimum(values, 87.0 if activation == "exp" else np.inf)  # beyond it a float32 has no power
    case.operands["input"] = values[None]
    rows_of(case.buffers[0], 1, 64)[:] = values
    np.testing.assert_allclose(case.run(0, 1)[:, :64], case.expected(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_channels_that_fill_a_tile_are_written_as_zero(layer: Linear | RowWise) -> None:
    result = default_case(layer).run(0, layer.units)
    assert np.all(result[:, layer.n : -(-layer.n // TILE) * TILE] == 0)


@pytest.mark.parametrize(
    ("hardware", "best"),
    [(Hardware(64, 32, "cpu"), (12, 32)), (Hardware(32, 16, "cpu"), (6, 16)), (Hardware(16, 32, "cpu"), (6, 16))],
    ids=str,
)
def test_the_best_tile_keeps_multiply_adds_busy_and_spills_nothing(hardware: Hardware, best: tuple[int, int]) -> None:
    layer = Linear(48, 768, 768)
    for side in ("cpu", "gpu"):
        variant = schedules.family(layer).variants(layer, side, hardware)[0]
        params = {"channels": TILE, **dict(variant.params)}
        assert (params["rows"], params["channels"]) == best
        written_out = params["unroll"] * best[0] * best[1] // hardware.lanes
        assert written_out >= 24 and written_out // params["unroll"] < 32
    for variant in schedules.family(layer).variants(layer, "cpu", hardware):
        vectors = variant["channels"] // hardware.lanes
        assert (variant["rows"] * variant["k_split"] + 1) * vectors < hardware.vector_registers


@pytest.mark.parametrize("hardware", [HARDWARE, Hardware(16, 32, "gpu"), Hardware(32, 16, "cpu")], ids=str)
@pytest.mark.parametrize("m", [1, 2, 17, 197, 512])
def test_search_spaces_are_not_empty_and_fit_the_hardware(hardware: Hardware, m: int) -> None:
    layer = Linear(m, 768, 1000)
    for side in ("cpu", "gpu"):
        for variant in schedules.family(layer).variants(layer, side, hardware):
            launch = schedules.family(layer).dispatch(layer, side, variant)
            assert launch.group_size <= hardware.max_group_size
            assert launch.padded_rows >= m
