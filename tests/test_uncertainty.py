"""How far predictions may be off."""

import json

import numpy as np
import pytest

from tvm_coexec.prediction.uncertainty import Uncertainty, learn_uncertainty


def errors(layers: int, samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors that are ten times as large where the first feature is 1; those of a layer have a part in common."""
    rng = np.random.default_rng(seed)
    layer = np.repeat(np.arange(layers), samples)
    large = (layer % 2).astype(float)
    common = rng.normal(size=layers)[layer]
    log_errors = 0.02 * (1 + 9 * large) * (0.8 * common + 0.6 * rng.normal(size=len(layer)))
    return np.stack([large, rng.normal(size=len(layer))], axis=1).astype(np.float32), log_errors, layer % 5


def test_intervals_hold_most_errors_of_layers_that_they_were_not_learned_from():
    matrix, log_errors, folds = errors(100, 8)
    uncertainty, inside = learn_uncertainty(matrix, log_errors, folds)
    assert 0.7 < inside < 0.9
    other, other_errors, _ = errors(100, 8, seed=1)
    lower, upper = uncertainty.log_bounds(other)
    assert 0.7 < np.mean((other_errors >= lower) & (other_errors <= upper)) < 0.9
    large = other[:, 0] == 1
    assert np.median((upper - lower)[large]) > 3 * np.median((upper - lower)[~large])


def test_a_prediction_is_inside_its_own_interval():
    matrix, log_errors, folds = errors(40, 4)
    uncertainty, _ = learn_uncertainty(matrix, log_errors + 1.0, folds)
    lower, upper = uncertainty.log_bounds(matrix)
    assert (lower <= 0).all() and (upper >= 0).all()


def test_it_survives_a_round_trip():
    matrix, log_errors, folds = errors(20, 4)
    uncertainty, _ = learn_uncertainty(matrix, log_errors, folds)
    read = Uncertainty.from_json(json.loads(json.dumps(uncertainty.to_json())))
    np.testing.assert_array_equal(read.log_bounds(matrix), uncertainty.log_bounds(matrix))


@pytest.mark.parametrize("count", [1, 3])
def test_a_single_group_of_layers_is_enough_to_begin_with(count):
    matrix, log_errors, _ = errors(count, 3)
    uncertainty, inside = learn_uncertainty(matrix, log_errors, np.zeros(len(log_errors)))
    assert 0 <= inside <= 1
    assert np.isfinite(uncertainty.log_bounds(matrix)).all()
