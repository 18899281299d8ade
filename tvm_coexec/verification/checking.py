"""Checks one layer of a module for measuring: random parameters, random input, and the result against float64's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from tvm_coexec import schedules
from tvm_coexec.errors import InputError
from tvm_coexec.layers import (
    ROW_BLOCK,
    AnyLayer,
    Conv2d,
    Pool,
    Variant,
    layer_from_json,
)
from tvm_coexec.module.manifest import StepSpec
from tvm_coexec.module.tensors import Source
from tvm_coexec.timing.programs import AnyLoaded

from .reference import evaluate, relative_error

_CHECKED_FLOPS = 50_000_000
"""A check computes about this much in float64: all rows of small layers, some rows of large ones."""

_CHECKED_TAPS = 4_000_000
"""Elements of input images, each pixel's neighbourhood counted anew, that a check gathers at most."""


def random_params(layer: AnyLayer, seed: int) -> dict[str, np.ndarray]:
    """Parameters of a layer as a model would give them: weights whose sums of products neither grow nor vanish."""
    rng = np.random.default_rng(seed)
    params = {name: rng.standard_normal(shape, np.float32) for name, shape in layer.parameter_shapes().items()}
    if "weights" in params:
        params["weights"] /= np.float32(math.sqrt(layer.facts()["reduction"]))
    return params


@lru_cache(maxsize=1)
def _params_of(layer: AnyLayer, seed: int) -> Mapping[str, np.ndarray]:
    """The parameters of a layer that is checked at many splits; nobody may change them."""
    return random_params(layer, seed)


def random_constants(step: StepSpec) -> dict[Source, np.ndarray]:
    """Draw the constants of a step by a seed, packed as its halves read them."""
    layer = layer_from_json(step.layer)
    assert step.seed is not None
    params = random_params(layer, step.seed)
    packed: dict[str, np.ndarray] = {}
    for half in (step.cpu, step.gpu):
        if half is not None:
            packed |= schedules.family(layer).pack(layer, params, Variant.from_json(half.variant))
    return {Source.constant(step.name, role): array for role, array in packed.items()}


def error_bound(step: StepSpec) -> float:
    """How far a right result may lie from float64's, relative to the largest value."""
    layer = layer_from_json(step.layer)
    variants = [Variant.from_json(half.variant) for half in (step.cpu, step.gpu) if half is not None]
    return max(schedules.family(layer).error_bound(variant) for variant in variants)


def check_step(loaded: AnyLoaded, index: int, cpu_units: int, gpu_units: int, *, seed: int) -> float:
    """See :meth:`Module.check_step`. Units that neither side computes are not looked at."""
    step = loaded.manifest.steps[index]
    if step.seed is None:
        raise InputError(f"layer {step.name!r} cannot be checked alone: its module was not made for measuring")
    layer = layer_from_json(step.layer)
    rng = np.random.default_rng(seed)
    for name in step.inputs:
        view = loaded.view(name)
        view[:] = rng.standard_normal(view.shape, np.float32)
    loaded.view(step.output)[:] = np.nan
    loaded.publish([*step.inputs, step.output])
    loaded.chain(index, cpu_units, gpu_units).run()
    output = _rows_of(loaded, step.output)
    computed_rows, computed_channels = output.shape
    if layer.axis == "rows":
        computed_rows = min(computed_rows, (cpu_units + gpu_units) * ROW_BLOCK)
    elif step.unit_lines is not None:
        computed_rows = min(computed_rows, (cpu_units + gpu_units) * step.unit_lines * layer.output_size[2])
    else:
        computed_channels = min(computed_channels, (cpu_units + gpu_units) * step.unit_channels)
    operands = dict(_params_of(layer, step.seed))
    if layer.mixes_rows:
        return _error_of_all_rows(loaded, step, layer, operands, computed_channels)
    rows = _some_rows(layer, computed_rows, rng)
    is_image = len(layer.output_size) == 4
    for position, name in enumerate(step.inputs[: len(layer.input_sizes)]):
        role = f"input{position}" if position else "input"
        operands[role] = loaded.view(name) if is_image else loaded.view(name)[rows]
    if "residual" in layer.epilogue:
        operands["residual"] = _rows_of(loaded, step.inputs[-1])[rows]
    expected = evaluate(layer, operands, rows if is_image else None)
    return relative_error(output[rows, :computed_channels], expected[:, :computed_channels])


def _error_of_all_rows(
    loaded: AnyLoaded, step: StepSpec, layer: AnyLayer, operands: dict[str, np.ndarray], channels: int
) -> float:
    """The largest relative error of a layer that mixes rows, of which the first ``channels`` were computed."""
    roles = ["input", *(f"input{number}" for number in range(1, len(layer.input_sizes)))]
    roles += ["residual"] if "residual" in layer.epilogue else []
    operands |= {role: _rows_of(loaded, name) for role, name in zip(roles, step.inputs, strict=True)}
    expected = evaluate(layer, operands)
    return relative_error(_rows_of(loaded, step.output)[:, :channels], expected[:, :channels])


def _rows_of(loaded: AnyLoaded, name: str) -> np.ndarray:
    view = loaded.view(name)
    return view.reshape(-1, view.shape[-1])


def _some_rows(layer: AnyLayer, rows: int, rng: np.random.Generator) -> np.ndarray:
    wanted = max(4, math.ceil(rows * min(1.0, _CHECKED_FLOPS / max(layer.flops, 1))))
    if isinstance(layer, Conv2d | Pool):
        wanted = min(wanted, math.ceil(_CHECKED_TAPS / (math.prod(layer.kernel) * layer.input_sizes[0][-1])))
    elif len(layer.output_size) == 4:
        wanted = min(wanted, math.ceil(_CHECKED_TAPS / layer.out_channels))
    if wanted >= rows:
        return np.arange(rows)
    return np.unique(np.concatenate([[0, rows - 1], rng.choice(rows, wanted, replace=False)]))
