"""Random graphs of all supported operators: each is built, divided at random, and compared with ONNX Runtime."""

from __future__ import annotations

import os
from functools import cache

import numpy as np
from outcomes import Outcome
from random_graphs import Seeded, grow
from random_operators import OPERATORS

from tvm_coexec.api import build_graph
from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.verification import NetworkCheck


@cache
def _device() -> Device:
    return open_device(os.environ.get("CAMPAIGN_DEVICE") or None)


def trial(seed: int) -> Outcome:
    """Build and check one graph."""
    choices = Seeded(seed)
    growing = grow(choices, OPERATORS, choices.integer(1, 10))
    model = growing.model()
    what = ", ".join(node.op_type for node in growing.nodes)
    split = (0.0, 1.0, 0.5, choices.integer(1, 99) / 100)[choices.integer(0, 3)]
    try:
        graph = to_graph(model)
        module = build_graph(graph, _device(), split=split)
    except ModelError as error:
        return Outcome("refused", f"[{what}] {error}")
    # the numbers that the graph was grown on, with which no result stands near a jump
    arrays = [np.ascontiguousarray(array) for array in growing.arrays()]
    verdict = NetworkCheck(model, graph, arrays=arrays).verdict(module)
    return Outcome("right") if verdict.agrees else Outcome("wrong", f"[{what}] split {split}: {verdict}")
