"""One shipped model in a process of its own: it is read, built, checked, tuned for and timed.

Run as a script: ``real_model_process.py OPTIONS``, with :class:`Options` as JSON. It writes a JSON line for each stage
as that ends, the last of which has an ``error`` where the model fails.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from real_model_timing import timed

import tvm_coexec
from tvm_coexec.api import build_graph
from tvm_coexec.errors import CoexecError
from tvm_coexec.frontends import to_graph
from tvm_coexec.graph import Graph
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.verification import NetworkCheck

FAMILIES = ("linear", "rowwise", "conv2d", "images", "attention")


@dataclass(frozen=True)
class Options:
    """What to do with one model; without a profile it is not timed, and without minutes the profile is as it is."""

    path: str
    shapes: dict[str, tuple[int, ...]]
    device: str
    split: float
    profile: str
    minutes: float
    rounds: int


def try_model(options: Options, tell: Callable[..., None]) -> None:
    """Take a model through all stages."""
    device = open_device(options.device or None)
    graph = to_graph(options.path, options.shapes)
    tell("read", layers=len(graph.nodes), opaque=sum(node.layer.op == "opaque" for node in graph.nodes))
    module = build_graph(graph, device, split=options.split)
    tell("build", synchronisations=module.sync_count)
    check = NetworkCheck(options.path, graph)
    verdict = check.verdict(module)
    tell("check", engine=verdict.engine, findings=verdict.findings, largest=verdict.largest, verdict=str(verdict))
    if options.profile and verdict.agrees:
        _tune_and_time(options, graph, check, device, tell)


def _tune_and_time(
    options: Options, graph: Graph, check: NetworkCheck, device: Device, tell: Callable[..., None]
) -> None:
    if options.minutes:
        tvm_coexec.tune(
            options.profile,
            device=device.info.name,
            families=FAMILIES,
            minutes=options.minutes,
            models=[options.path],
            shapes=options.shapes,
        )
        tell("tune")
    tell("time", **timed(Path(options.path), graph, check.arrays, device, options.profile, options.rounds))


def main() -> None:
    options = Options(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print does not disturb the answers
    began_s = time.perf_counter()

    def tell(stage: str, **values: Any) -> None:
        nonlocal began_s
        now_s = time.perf_counter()
        print(json.dumps({"stage": stage, "seconds": now_s - began_s, **values}), file=answers)
        began_s = now_s

    try:
        try_model(options, tell)
    except CoexecError as error:
        tell("end", error=str(error))
    except Exception as error:  # a bug, of which the table has to tell
        tell("end", error=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")


if __name__ == "__main__":
    main()
