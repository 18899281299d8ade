"""Damaged ONNX files: each is read, or refused in three lines at most."""

from __future__ import annotations

import numpy as np
from damages import read_damaged
from outcomes import Outcome
from random_graphs import Seeded, grow
from random_operators import OPERATORS


def trial(seed: int) -> Outcome:
    """Read one file."""
    choices = Seeded(seed)
    content = grow(choices, OPERATORS, choices.integer(1, 5)).model().SerializeToString()
    return read_damaged(content, ".onnx", np.random.default_rng(seed))
