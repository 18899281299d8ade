"""A few random graphs; ``python tests/campaigns`` tries many."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import grow
from random_operators import OPERATORS

from tvm_coexec.api import build_graph
from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.runtime.device import Device
from tvm_coexec.verification import NetworkCheck

pytestmark = pytest.mark.one_runtime


class Drawn:
    """Choices that hypothesis makes, so that it can make a failing graph smaller."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def integer(self, low: int, high: int) -> int:
        return int(self._data.draw(st.integers(low, high)))


@settings(max_examples=3, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data(), st.integers(1, 4), st.sampled_from((0.0, 0.5, 1.0)))
def test_random_graphs_compute_what_onnx_runtime_does(
    device: Device, data: st.DataObject, nodes: int, split: float
) -> None:
    growing = grow(Drawn(data), OPERATORS, nodes)
    model = growing.model()
    try:
        graph = to_graph(model)
    except ModelError as error:  # how many may be refused, the campaign says
        assert len(str(error).splitlines()) <= 3
        return
    verdict = NetworkCheck(model, graph, arrays=growing.arrays()).verdict(build_graph(graph, device, split=split))
    assert verdict.agrees, f"{verdict}\n{model}"
