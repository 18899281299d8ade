"""Runs ONNX's own test cases of single operators, and prints what passes, and what is refused and why, as Markdown.

Cases run in a process of their own, so that a case that ends its process is counted and the others still run.

Examples: ``python scripts/onnx_nodes.py --device pocl Conv Softmax``, and with ``--all`` every operator of ONNX
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import pkgutil
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case import node
from reporting import run_main

import tvm_coexec
from tvm_coexec.errors import CoexecError
from tvm_coexec.runtime.device import Device, open_device

OPERATORS = [
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Clip",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Cos",
    "Div",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "MatMul",
    "Max",
    "MaxPool",
    "Min",
    "Mul",
    "Neg",
    "Pad",
    "Pow",
    "PRelu",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Resize",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Where",
]
"""Operators that convolutional networks and transformers are made of."""


VERDICTS = ("passed", "refused", "wrong", "raised", "killed")
"""``raised``: an exception that is none of the product's errors; ``killed``: the process ended, or took too long."""

_SLOW_FILES = {"averagepool": "AveragePool", "lppool": "LpPool", "maxpool": "MaxPool"}
"""Files of ONNX's with the operator that they are for: they take 9 of the 11 seconds in which all cases are made."""

TIMEOUT_S = 600
"""Longest time that a case may take, also on a busy machine: boxes are chosen after 20 seconds of compiling."""


@dataclass(frozen=True)
class Case:
    """One test case: its model of one node, with the arrays that go in and should come out."""

    name: str
    model: onnx.ModelProto
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    @property
    def operator(self) -> str:
        return self.model.graph.node[0].op_type


@dataclass(frozen=True)
class Outcome:
    """What became of a case, one of the ``VERDICTS``, and why."""

    verdict: str
    reason: str = ""


def cases() -> tuple[Case, ...]:
    """The cases whose model is one node, of every operator."""
    return _cases(left_out=frozenset())


@cache
def _cases(left_out: frozenset[str]) -> tuple[Case, ...]:
    """The cases whose model is one node, but for those of some of ONNX's files: importing a file makes its cases."""
    found = []
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in pkgutil.walk_packages(node.__path__, f"{node.__name__}."):
            if file.name.rpartition(".")[2] not in left_out:
                importlib.import_module(file.name)
    for case in node._NodeTestCases:
        graph = case.model.graph
        if len(graph.node) == 1 and all(isinstance(array, np.ndarray) for part in case.data_sets[0] for array in part):
            inputs, outputs = case.data_sets[0]
            given = {value.name: array for value, array in zip(graph.input, inputs, strict=True)}
            expected = {value.name: array for value, array in zip(graph.output, outputs, strict=True)}
            found.append(Case(case.name, case.model, given, expected))
    return tuple(found)


def of_operators(names: Sequence[str]) -> Iterator[Case]:
    """Give the cases of some operators."""
    left_out = frozenset(file for file, operator in _SLOW_FILES.items() if operator not in names)
    return (case for case in _cases(left_out) if case.operator in names)


def run(case: Case, device: Device) -> Outcome:
    """Build and run a case, and compare its outputs to those that come with it."""
    model = _with_constants(case)
    given = {value.name: np.array(case.inputs[value.name], order="C") for value in model.graph.input}
    try:
        module = tvm_coexec.build(model, device=device, split="cpu")
        results = module(**given)
    except CoexecError as error:
        return Outcome("refused" if str(error).count("\n") < 3 else "raised", str(error))
    except Exception as error:
        return Outcome("raised", repr(error))
    outputs = results if isinstance(results, dict) else {model.graph.output[0].name: results}
    for name, array in case.outputs.items():
        result = outputs[name]
        if result.shape != array.shape or result.dtype != array.dtype:
            return Outcome("wrong", f"{name} is {result.dtype} {result.shape}, not {array.dtype} {array.shape}")
        if not np.allclose(result, array, rtol=1e-3, atol=1e-5, equal_nan=True):
            return Outcome("wrong", f"{name} differs from what it should be")
    return Outcome("passed")


def run_apart(cases: Iterable[Case], device: str | None) -> Iterator[tuple[Case, Outcome]]:
    """Run cases one after another in a process of their own, and in a new one after each death."""
    worker = None
    for case in cases:
        worker = worker or _Worker(device)
        outcome = worker.run(case)
        if outcome.verdict == "killed":
            worker = None
        yield case, outcome
    if worker is not None:
        worker.stop()


class _Worker:
    def __init__(self, device: str | None) -> None:
        context = multiprocessing.get_context("fork")  # the cases, which take long to make, are there already
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, device), daemon=True)
        self.process.start()
        other.close()

    def run(self, case: Case) -> Outcome:
        self.connection.send(case.name)
        try:
            if self.connection.poll(TIMEOUT_S):
                outcome: Outcome = self.connection.recv()
                return outcome
        except EOFError:
            self.process.join()
            return Outcome("killed", f"the process ended with {self.process.exitcode}")
        self.stop()
        return Outcome("killed", f"it took longer than {TIMEOUT_S} s")

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, device: str | None) -> None:
    opened = open_device(device)
    by_name = {case.name: case for case in cases()}
    while True:
        connection.send(run(by_name[connection.recv()], opened))


def _with_constants(case: Case) -> onnx.ModelProto:
    """The model with all its inputs but the first of floats made constants, as they are in networks."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    arrays = case.inputs
    floats = [name for name, array in arrays.items() if array.dtype == np.float32 and array.ndim]
    kept = list(arrays) if model.graph.node[0].op_type in _ELEMENTWISE else floats[:1] or list(arrays)[:1]
    for name, array in arrays.items():
        if name not in kept:
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    inputs = [value for value in model.graph.input if value.name in kept]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


_ELEMENTWISE = ("Add", "Concat", "Div", "MatMul", "Max", "Min", "Mul", "Pow", "Sub", "Sum", "Where")


def table(outcomes: Sequence[tuple[Case, Outcome]]) -> str:
    """Write a line for each operator: how many cases pass, and the reasons of the others."""
    lines = [f"| operator | cases | {' | '.join(VERDICTS)} | why |", "|---" * (len(VERDICTS) + 3) + "|"]
    for operator in sorted({case.operator for case, _ in outcomes}):
        own = [(case, outcome) for case, outcome in outcomes if case.operator == operator]
        counts = Counter(outcome.verdict for _, outcome in own)
        reasons = dict.fromkeys(f"{case.name}: {outcome.reason}" for case, outcome in own if outcome.reason)
        why = "<br>".join(reason.replace("|", "\\|").replace("\n", " ")[:200] for reason in reasons)
        numbers = " | ".join(str(counts[verdict]) for verdict in VERDICTS)
        lines.append(f"| {operator} | {len(own)} | {numbers} | {why} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operators", nargs="*", default=OPERATORS, help="names of ONNX operators")
    parser.add_argument("--all", action="store_true", help="run the cases of all operators")
    parser.add_argument("--device", help="any unambiguous part of an OpenCL device's name")
    options = parser.parse_args()
    chosen = cases() if options.all else tuple(of_operators(options.operators))
    outcomes = list(run_apart(chosen, options.device))
    print(table(outcomes))
    for title, own in (("supported", OPERATORS), ("other", {case.operator for case in cases()} - set(OPERATORS))):
        counts = Counter(outcome.verdict for case, outcome in outcomes if case.operator in own)
        print(f"{title} operators: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS))


if __name__ == "__main__":
    run_main(main)
