"""A built network on random inputs against an independent engine, down to the first node whose value differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import KernelError
from ..graph import Graph, Node
from ..layers import Opaque
from .differences import Difference, difference
from .evaluator import Evaluator
from .evaluators import evaluator_for
from .inputs import nudged, random_inputs

if TYPE_CHECKING:
    from ..frontends import Model
    from ..runtime.module import Module


@dataclass(frozen=True)
class Verdict:
    """What a check has found.

    Attributes
    ----------
    engine
        What the network was compared with.
    findings
        A line for each output that differs, then one that names the first node whose value does; none where all agrees.
    largest
        The largest difference of any output, relative to its largest value.
    finite_share
        The part of the outputs' elements that are finite numbers: of others little can be said.
    """

    engine: str
    findings: tuple[str, ...]
    largest: float
    finite_share: float

    @property
    def agrees(self) -> bool:
        return not self.findings

    def raise_for_findings(self) -> None:
        """Raise all findings as one error, where there are any.

        Raises
        ------
        KernelError
            An output differs.
        """
        if self.findings:
            raise KernelError(f"{'; '.join(self.findings)}; do not use the module, and report the model")

    def __str__(self) -> str:
        if self.findings:
            return "\n".join(self.findings)
        text = (
            f"everything agrees with {self.engine}: the largest difference is {self.largest:.1e} of the largest value"
        )
        if self.finite_share < 1:
            text += f" (of the outputs' elements {self.finite_share:.0%} are finite numbers)"
        return text


class NetworkCheck:
    """A model's results as an independent engine computes them; modules are compared with them.

    Parameters
    ----------
    model, graph
        A model, and the graph that was read from it.
    seed
        Seed of random inputs.
    arrays
        Inputs to take instead, in the graph's order.

    Attributes
    ----------
    arrays
        The inputs.

    Raises
    ------
    ModelError
        No engine for the model is installed, or it refuses the model.
    """

    def __init__(self, model: Model, graph: Graph, seed: int = 0, arrays: Sequence[np.ndarray] | None = None) -> None:
        self._graph = graph
        self._evaluator: Evaluator = evaluator_for(model)
        if arrays is None:
            arrays = random_inputs(graph, self._evaluator.choices, seed)
        self.arrays, self._nudged = arrays, nudged(arrays)
        self._expected, self._leeway = self._expect(self._evaluator.outputs)

    def _run(self, arrays: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Compute values by name; the model has inputs, too, that are constants of the graph."""
        fixed, given = self._graph.fixed, iter(arrays)
        if fixed:
            arrays = [fixed[name] if name in fixed else next(given) for name in self._evaluator.inputs]
        return self._evaluator.run(arrays, names)

    def _expect(self, names: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, tuple[float, float, float]]]:
        """Values by name, and the leeway of each: what rounding of the inputs makes of it, its step, its rounding."""
        expected = self._run(self.arrays, names)
        others = self._run(self._nudged, names)
        leeway = {}
        for name, array in expected.items():
            step = self._evaluator.steps.get(name, 0.0)
            # where a shape depends on numbers, it may change with them
            is_same_shape = others[name].shape == array.shape
            noise = difference(others[name], array, step=step).size if is_same_shape else 0.0
            leeway[name] = (noise, step, self._evaluator.rounding.get(name, 0.0))
        return expected, leeway

    def verdict(self, module: Module) -> Verdict:
        """Compare a module that was built from the graph."""
        results = _results(module, self.arrays)
        expected = [(self._expected[name], self._leeway[name]) for name in self._evaluator.outputs]
        if len(results) != len(expected):
            finding = f"there are {len(results)} outputs, {self._evaluator.engine} has {len(expected)}"
            return Verdict(self._evaluator.engine, (finding,), np.inf, 1.0)
        findings, largest = [], 0.0
        for (name, result), (array, leeway) in zip(results.items(), expected, strict=True):
            if (result.shape, result.dtype) != (array.shape, array.dtype):
                findings.append(
                    f"output {name!r} is {result.dtype} {list(result.shape)}, "
                    f"{self._evaluator.engine} has {array.dtype} {list(array.shape)}"
                )
                continue
            apart = difference(result, array, *leeway)
            largest = max(largest, apart.size)
            if not apart.is_allowed:
                findings.append(f"output {name!r} differs from {self._evaluator.engine}'s by {apart}")
        if findings:
            findings.append(self._first_difference(module))
        finite = [np.isfinite(array).mean() for array, _ in expected if array.size and array.dtype.kind == "f"]
        return Verdict(self._evaluator.engine, tuple(findings), largest, float(np.mean(finite)) if finite else 1.0)

    def _first_difference(self, module: Module) -> str:
        """A line that names the first node whose value differs."""
        graph = self._graph
        known = set(self._evaluator.values) - set(graph.outputs)
        inner = [name for name in _visible(graph) if name in known]
        if not inner and len(graph.nodes) > 1:
            return f"no inner value can be compared with {self._evaluator.engine}'s, so that no node can be named"
        found = _results(_with_outputs(graph, module, inner), self.arrays)
        names = dict(zip(inner, inner, strict=True)) | dict(zip(graph.outputs, self._evaluator.outputs, strict=True))
        expected, leeway = self._expect(list(dict.fromkeys(names.values())))
        apart: dict[str, Difference] = {}
        for node in graph.nodes:
            for name in (node.output, *graph.parents(node.output)):
                if name not in names or names[name] not in expected or name in apart:
                    continue
                nearest = _nearest(found[name], expected[names[name]], leeway[names[name]])
                if nearest is None:
                    continue
                apart[name] = nearest
                if not nearest.is_allowed:
                    return _named(node, name, nearest, [apart[read].size for read in node.reads if read in apart])
        return "with all inner values kept nothing differs: what differs is how values share memory, or not repeatable"


def _results(module: Module, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    results = module(*arrays)
    return results if isinstance(results, dict) else {next(iter(module.outputs)): results}


def _visible(graph: Graph) -> Iterator[str]:
    """Tensors that may be made outputs: all that nodes make but those that lie within others."""
    for node in graph.nodes:
        if graph.tensors[node.output].parent is None:
            yield node.output
        yield from graph.parents(node.output)[-1:]


def _with_outputs(graph: Graph, module: Module, names: Sequence[str]) -> Module:
    """Build the module's network anew, divided in the same way, with further outputs."""
    from tvm_coexec.compiler.packaging import package_plan
    from tvm_coexec.compiler.target import target_for

    from ..runtime.module import Module

    facts = module.device.facts()
    outputs = [*graph.outputs, *dict.fromkeys(names)]
    exposed = package_plan(replace(graph, outputs=outputs), module.plan, target_for(facts), facts)
    return Module(exposed, module.device)


def _nearest(found: np.ndarray, expected: np.ndarray, leeway: tuple[float, float, float]) -> Difference | None:
    """The difference in the order of axes in which both are nearest: images have their channels last here."""
    # a network of another float type may be computed in float32
    if found.size != expected.size or found.dtype.kind != expected.dtype.kind:
        return None
    orders = [found.reshape(expected.shape)]
    batch = expected.shape[0] if expected.ndim else 1
    channels = found.shape[-1] if found.ndim else 1
    if found.size and found.size % (batch * channels) == 0:
        first = found.reshape(batch, -1, channels).swapaxes(1, 2)
        orders.append(np.ascontiguousarray(first).reshape(expected.shape))
    return min((difference(order, expected, *leeway) for order in orders), key=lambda apart: apart.size)


def _named(node: Node, name: str, apart: Difference, before: Sequence[float]) -> str:
    layer = node.layer
    kind = layer.operator if isinstance(layer, Opaque) else layer.op
    text = f"the first value that differs is {name!r}, of node {node.name!r} ({kind}), by {apart}"
    return f"{text}; what it reads agrees to {max(before):.1e}" if before else text
