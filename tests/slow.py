"""Marks of cases that ``./scripts/test --quick`` leaves out."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_except(cases: Iterable[Any], *quick: int) -> list[Any]:
    """Mark all cases as slow but those at some indices, one for each way that the code goes."""
    return [case if index in quick else _slow(case) for index, case in enumerate(cases)]


def _slow(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
