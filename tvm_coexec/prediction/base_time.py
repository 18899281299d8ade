"""A model of a few terms estimates a half's time.

Trees correct it; alone they could not reach beyond the sizes that they saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LAYER_TERMS = (
    "constant",
    "units",
    "flops",
    "weight_bytes",
    "activation_bytes",
    "read_us",
)
"""What can be said of a half without knowing its kernel."""

KERNEL_TERMS = ("groups", "padded_flops", "register_steps", "steps_per_item")
"""The last is what a GPU that is not full takes: the steps of a work-item, one after the other. On an H200 halves by
register tiles were 88 % off without it, 15 % with it."""

PRODUCT_TERMS = ("bound_cycles",)
"""A term of a GPU's dense kernels: halves of ViT-Base on an H200 were 20 % off without it, 13 % with it."""

THREAD_TERMS = ("thread_units", "thread_flops")
"""Where halves are computed by several numbers of threads: memory's part of the time does not become less by them."""

FLOPS_TERMS = ("constant", "flops")

_REWEIGHTINGS = 5
"""Times that the fit is repeated with samples weighed by how far they were off, so that outliers count for little."""

_SMALL_ERROR = 0.05
"""Relative error below which a sample counts for no more."""


@dataclass(frozen=True)
class BaseTime:
    """A sum of non-negative costs: microseconds for one unit of each term."""

    coefficients: tuple[tuple[str, float], ...]

    @classmethod
    def fit(
        cls, described: Mapping[str, np.ndarray], latency_us: np.ndarray, weights: np.ndarray, terms: Sequence[str]
    ) -> BaseTime:
        """Minimise the relative error, so that short halves count as much as long ones.

        The first fit is one of least squares. In each later one a half weighs the less the further it lay off, down to
        its absolute error: a machine that was busy while some halves were measured must not bend the others.
        """
        columns = np.stack([_term(described, term) for term in terms], axis=1)
        scales = columns.max(axis=0, initial=0.0)
        used = scales > 0
        relative = columns[:, used] / scales[used] / latency_us[:, None]
        solution = np.zeros(used.sum())
        reweighted = weights
        for _ in range(_REWEIGHTINGS):
            roots = np.sqrt(reweighted)
            solution = _non_negative_least_squares(relative * roots[:, None], roots)
            reweighted = weights / np.maximum(np.abs(relative @ solution - 1), _SMALL_ERROR)
        coefficients = np.zeros(len(terms))
        coefficients[used] = solution / scales[used]
        return cls(tuple((term, float(value)) for term, value in zip(terms, coefficients, strict=True)))

    def predict(self, described: Mapping[str, np.ndarray]) -> np.ndarray:
        """Time in microseconds of each half, never zero."""
        total = np.zeros(len(described["units"]))
        for term, coefficient in self.coefficients:
            if coefficient:
                total += coefficient * _term(described, term)
        return np.maximum(total, 1e-3)


def _term(described: Mapping[str, np.ndarray], term: str) -> np.ndarray:
    count = len(described["units"])
    if term in PRODUCT_TERMS and term not in described:
        return np.zeros(count)
    return np.ones(count) if term == "constant" else described[term]


def _non_negative_least_squares(matrix: np.ndarray, target: np.ndarray, sweeps: int = 500) -> np.ndarray:
    """Fit by coordinate descent; the few terms make its slow end harmless, since the trees correct what it leaves."""
    gram, moments = matrix.T @ matrix, matrix.T @ target
    solution = np.zeros(len(moments))
    for _ in range(sweeps):
        for j in range(len(moments)):
            solution[j] = max(0.0, solution[j] + (moments[j] - gram[j] @ solution) / gram[j, j])
    return solution
