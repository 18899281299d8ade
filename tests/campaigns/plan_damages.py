"""Damaged plans: each is refused in a line, or the network that is divided by it gives the right results."""

from __future__ import annotations

import copy
import json
import os
from functools import cache
from typing import Any

import numpy as np
from onnx_builder import OnnxBuilder, linear
from outcomes import Outcome

from tvm_coexec import schedules
from tvm_coexec.api import build_graph, plan_graph
from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import CoexecError
from tvm_coexec.frontends import to_graph
from tvm_coexec.graph import Graph
from tvm_coexec.planning.plan import Plan
from tvm_coexec.runtime.device import Device, open_device

INPUT = np.random.default_rng(0).standard_normal((1, 3, 12, 12), np.float32)
_ANYTHING: list[Any] = [None, True, -1, 0, 1, 2, 3, 5, 64, 2**31, 2**63, 10**30, 0.5, 1e308, "", "x", [], {}, [0, 1]]
Random = np.random.Generator


@cache
def _device() -> Device:
    return open_device(os.environ.get("CAMPAIGN_DEVICE") or None)


@cache
def _graph() -> Graph:
    """A layer of most families."""
    b = OnnxBuilder(x=INPUT.shape)
    first = b.add("Relu", b.add("Conv", "x", b.weights(64, 3, 3, 3), b.weights(64), pads=[1] * 4))
    apart = b.add("Conv", first, b.weights(64, 1, 3, 3), b.weights(64), group=64, pads=[1] * 4)
    wide = b.add("Conv", apart, b.weights(64, 64, 3, 3), b.weights(64), pads=[1] * 4)
    pooled = b.add("MaxPool", b.add("Add", wide, first), kernel_shape=[2, 2], strides=[2, 2])
    rows = b.add("Reshape", pooled, b.const([36, 64], "int64"))
    scaled = b.add("LayerNormalization", linear(b, rows, 64, 96), b.weights(96), b.weights(96))
    return to_graph(b.model(b.add("Softmax", linear(b, scaled, 96, 40))))


@cache
def _expected() -> np.ndarray:
    return _result(plan_graph(_graph(), _device(), split="cpu"))


def _result(plan: Plan) -> np.ndarray:
    module = build_graph(_graph(), _device(), split=plan)
    assert str(module.plan)
    for array in module.outputs.values():
        array.fill(np.nan)
    result: np.ndarray = module(INPUT)
    return result


@cache
def _candidates(index: int, side: str) -> list[dict[str, Any]]:
    """What the planner may choose for a layer."""
    layer, hardware = _graph().nodes[index].layer, target_for(_device().facts()).hardware
    return [variant.to_json() for variant in schedules.family(layer).variants(layer, side, hardware)]


def _chosen(random: Random) -> dict[str, Any]:
    """A plan of candidates, each layer divided at random."""
    values = plan_graph(_graph(), _device(), split=float(random.choice([0.0, 0.3, 0.5, 1.0]))).to_json()
    for index, layer in enumerate(values["layers"]):
        for side in ("cpu", "gpu"):
            if layer[side] is not None and random.integers(0, 4) == 0:
                candidates = _candidates(index, side)
                layer[side] = {**candidates[random.integers(0, len(candidates))]}
            if layer[side] is not None and random.integers(0, 8) == 0:
                layer[side]["threads"] = int(random.choice([1, 2, 7, 64, 1024]))
    return values


def _damage(values: dict[str, Any], random: Random) -> dict[str, Any]:
    """Change one to three places, for the most part those that say how a layer is computed."""
    values = copy.deepcopy(values)
    layers = list(values["layers"])
    for _ in range(random.integers(1, 4)):
        at: Any = values
        if random.integers(0, 4):
            at = layers[random.integers(0, len(layers))]
            halves = [at[side] for side in ("cpu", "gpu") if isinstance(at.get(side), dict)]
            at = halves[random.integers(0, len(halves))] if halves and random.integers(0, 4) else at
        while isinstance(at, dict | list) and at:
            places = list(at) if isinstance(at, dict) else range(len(at))
            place = places[random.integers(0, len(places))]
            if isinstance(at[place], dict | list) and at[place] and random.integers(0, 4):
                at = at[place]
                continue
            _change(at, place, layers, random)
            break
    return values


def _change(at: Any, place: Any, layers: list[dict[str, Any]], random: Random) -> None:
    """Put something else in a place, or nothing."""
    kind, old = random.integers(0, 8), at[place]
    if kind == 0:
        del at[place]
    elif kind == 1:
        at[place] = copy.deepcopy(_ANYTHING[random.integers(0, len(_ANYTHING))])
    elif kind == 2 and isinstance(at, dict):
        at[place] = copy.deepcopy(layers[random.integers(0, len(layers))].get(place, old))
    elif isinstance(old, int):
        at[place] = [old + 1, old - 1, old * 2, old // 2, 0, 1, 3, int(random.integers(0, 65))][random.integers(0, 8)]
    elif isinstance(old, float):
        at[place] = old * float(random.standard_normal())
    elif isinstance(at, dict):
        at[("threads", f"{place}_")[random.integers(0, 2)]] = at.pop(place)
    else:
        at.append(copy.deepcopy(old))


def trial(seed: int) -> Outcome:
    """Read one plan, divide the network by it, and compare."""
    random = np.random.default_rng(seed)
    expected = _expected()
    values = _damage(_chosen(random), random)
    try:
        result = _result(Plan.from_json(json.loads(json.dumps(values))))
    except CoexecError as error:
        is_line = "\n" not in str(error)
        return Outcome("right") if is_line else Outcome("raised", f"an error of several lines: {error}")
    if np.allclose(result, expected, rtol=1e-3, atol=1e-5):
        return Outcome("right")
    return Outcome("wrong", f"off by {np.abs(result - expected).max()} by {json.dumps(values['layers'])}")
