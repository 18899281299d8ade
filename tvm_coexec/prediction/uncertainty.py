"""How far predictions may be off: XGBoost's quantile regression of what they missed on layers that they had not seen.

What a predictor misses of its own training samples would be too little, so it is learned from errors on layers that
were held out. Samples of one layer err together, so that the quantiles, too, are judged by layers that they were not
learned from, and moved apart until they hold there.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xgboost

INSIDE = 0.8
"""Share of the measurements that an interval is to hold, as many of the others above as below."""

TAILS = ((1 - INSIDE) / 2, (1 + INSIDE) / 2)
"""Shares of the measurements below either end."""

_ROUNDS = 40
"""Trees of each quantile."""
_PARAMETERS: dict[str, Any] = {
    "objective": "reg:quantileerror",
    "quantile_alpha": TAILS,
    "tree_method": "hist",
    "eta": 0.1,
    "max_depth": 3,
    "min_child_weight": 20,
    "nthread": 1,
    "seed": 0,
}


@dataclass(frozen=True)
class Uncertainty:
    """The quantiles of a predictor's error.

    Parameters
    ----------
    booster
        Gives the lower and the upper quantile of the logarithm of the measured time over the predicted one.
    margin
        By which the quantiles are moved apart.
    """

    booster: xgboost.Booster
    margin: float

    def log_bounds(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the factors on predicted times between which most measured ones are, one value a half.

        The prediction itself is always between them.
        """
        lower, upper = _quantiles(self.booster, matrix)
        return np.minimum(lower - self.margin, 0.0), np.maximum(upper + self.margin, 0.0)

    def to_json(self) -> dict[str, Any]:
        """The booster as XGBoost writes it, and the margin."""
        return {"booster": base64.b64encode(bytes(self.booster.save_raw("ubj"))).decode(), "margin": self.margin}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Uncertainty:
        """Read what :meth:`to_json` made."""
        import xgboost

        booster = xgboost.Booster({"nthread": 1})
        booster.load_model(bytearray(base64.b64decode(values["booster"])))
        return cls(booster, values["margin"])


def learn_uncertainty(matrix: np.ndarray, log_errors: np.ndarray, folds: np.ndarray) -> tuple[Uncertainty, float]:
    """Learn from errors on held-out layers.

    Parameters
    ----------
    matrix
        Features, one row a half.
    log_errors
        Logarithms of measured over predicted times, of predictors that had not seen the layer.
    folds
        The group of layers that each half belongs to.

    Returns
    -------
    tuple
        The uncertainty, and the share of the errors between quantiles which were learned from the other groups.
    """
    beyond = np.zeros(len(log_errors))
    for fold in np.unique(folds):
        own = folds == fold
        others = own if own.all() else ~own
        booster = _train(matrix[others], log_errors[others])
        lower, upper = _quantiles(booster, matrix[own])
        beyond[own] = np.maximum(lower - log_errors[own], log_errors[own] - upper)
    inside = [beyond[folds == fold] <= _margin(beyond[folds != fold]) for fold in np.unique(folds)]
    return Uncertainty(_train(matrix, log_errors), _margin(beyond)), float(np.concatenate(inside).mean())


def _margin(beyond: np.ndarray) -> float:
    return float(np.quantile(beyond, INSIDE)) if len(beyond) else 0.0


def _train(matrix: np.ndarray, log_errors: np.ndarray) -> xgboost.Booster:
    import xgboost

    return xgboost.train(_PARAMETERS, xgboost.DMatrix(matrix, log_errors, nthread=1), _ROUNDS)


def _quantiles(booster: xgboost.Booster, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = np.sort(booster.inplace_predict(matrix).astype(float).reshape(-1, len(TAILS)), axis=1)
    return both[:, 0], both[:, 1]
