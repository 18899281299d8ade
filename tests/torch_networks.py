"""Networks of torch, and what torch makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from reference import evaluate

from tvm_coexec.frontends import to_graph
from tvm_coexec.graph import Graph

torch = pytest.importorskip("torch", reason="needs torch, to export programs")


class Function(torch.nn.Module):
    """A network that is one function of its inputs; ``parts`` are modules that the function gets first."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        self.parts = torch.nn.ModuleDict(parts)

    def forward(self, *inputs: Any) -> Any:
        return self.function(*self.parts.values(), *inputs)


def random_tensor(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def check_against_torch(network: Any, *inputs: Any) -> Graph:
    """Export a network, form its graph, compare what it computes to torch, and give it for a look at its nodes."""
    network = network.eval()
    graph = to_graph(torch.export.export(network, inputs))
    results = evaluate(graph, {name: x.numpy() for name, x in zip(graph.inputs, inputs, strict=True)})
    expected = network(*inputs)
    for result, wanted in zip(results.values(), expected if isinstance(expected, tuple) else (expected,), strict=True):
        array = wanted.detach().numpy()
        assert result.shape == array.shape
        largest = np.abs(array[np.isfinite(array)]).max(initial=0)
        np.testing.assert_allclose(result, array, rtol=1e-4, atol=1e-5 * largest)
    return graph


def ops(graph: Graph) -> list[str]:
    """The layer of every node, in execution order."""
    return [node.layer.op for node in graph.nodes]
