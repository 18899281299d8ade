"""ONNX's own test cases of the operators that networks are made of: what is built computes what it should."""

from itertools import islice

import pytest
from onnx_nodes import OPERATORS, cases, of_operators, run, table
from slow import slow_except

from tvm_coexec.runtime.device import Device

pytestmark = pytest.mark.one_runtime

FEW = 4
"""Cases of an operator that the tests run; ``scripts/onnx_nodes.py`` runs them all."""

PASSING = ("Cos", "Relu", "Clip", "Softmax", "Transpose", "Gather", "ReduceMean", "Split", "Slice", "Where", "Reshape")
"""Operators of whose cases most must pass; the others' number may be what it is."""

QUICK = map(OPERATORS.index, ("Softmax", "Gather", "Slice"))


@pytest.mark.parametrize("operator", slow_except(OPERATORS, *QUICK))
def test_what_is_built_is_right(operator: str, device: Device) -> None:
    outcomes = [(case, run(case, device)) for case in islice(of_operators([operator]), FEW)]
    assert [case.name for case, outcome in outcomes if outcome.verdict == "wrong"] == []
    passed = sum(outcome.verdict == "passed" for _, outcome in outcomes)
    assert 2 * passed > len(outcomes) or operator not in PASSING, table(outcomes)


def test_the_table_counts_every_case(device: Device) -> None:
    outcomes = [(case, run(case, device)) for case in of_operators(["Relu"])]
    assert f"| Relu | {len(outcomes)} | {len(outcomes)} | 0 | 0 |" in table(outcomes)


@pytest.mark.slow
def test_there_are_cases_of_every_operator() -> None:
    assert {case.operator for case in cases()} >= set(OPERATORS)
