"""One shipped model in a process of its own: it is read, built and checked, and each stage is told as it ends.

Run as a script: ``real_model_process.py MODEL SHAPES DEVICE SPLIT``, with SHAPES as JSON. It writes a JSON line
for each stage, the last of which has an ``error`` where the model fails.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from tvm_coexec.api import build_graph
from tvm_coexec.errors import CoexecError
from tvm_coexec.frontends import to_graph
from tvm_coexec.runtime.device import open_device
from tvm_coexec.verification import NetworkCheck


def read_model(path: str, shapes: Mapping[str, Sequence[int]]) -> Any:
    """What is built: the file, or the ONNX model with the shapes that its file leaves open."""
    if not shapes:
        return path
    model = onnx.load(path)
    for value in model.graph.input:
        for axis, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            axis.dim_value = size
    del model.graph.value_info[:]
    return model


def main() -> None:
    path, shapes, device_name, split = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print does not disturb the answers
    began_s = time.perf_counter()

    def tell(stage: str, **values: Any) -> None:
        nonlocal began_s
        now_s = time.perf_counter()
        print(json.dumps({"stage": stage, "seconds": now_s - began_s, **values}), file=answers)
        began_s = now_s

    try:
        model = read_model(path, json.loads(shapes))
        graph = to_graph(model)
        tell("read", layers=len(graph.nodes), opaque=sum(node.layer.op == "opaque" for node in graph.nodes))
        module = build_graph(graph, open_device(device_name or None), split=float(split))
        tell("build", synchronisations=module.sync_count)
        verdict = NetworkCheck(model, graph).verdict(module)
        tell("check", engine=verdict.engine, findings=verdict.findings, largest=verdict.largest, verdict=str(verdict))
    except CoexecError as error:
        tell("end", error=str(error))
    except Exception as error:  # a bug, of which the table has to tell
        tell("end", error=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", bug=True)


if __name__ == "__main__":
    main()
