"""Damaged ONNX files: each is read, or refused in three lines at most."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from damages import damaged
from outcomes import Outcome
from random_graphs import Seeded, grow
from random_operators import OPERATORS

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph

MOST_LINES = 3


def trial(seed: int) -> Outcome:
    """Read one file."""
    choices = Seeded(seed)
    content = grow(choices, OPERATORS, choices.integer(1, 5)).model().SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(damaged(content, np.random.default_rng(seed)))
        return read(path)


def read(path: Path) -> Outcome:
    """Whether a model is read or refused as it should be."""
    try:
        to_graph(path)
    except ModelError as error:
        lines = len(str(error).splitlines())
        return Outcome("right") if lines <= MOST_LINES else Outcome("raised", f"an error of {lines} lines: {error}")
    return Outcome("right")
