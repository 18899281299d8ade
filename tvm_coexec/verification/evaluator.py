"""What every engine gives that judges a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np


class Evaluator(ABC):
    """A model in an engine that shares nothing with this one.

    Attributes
    ----------
    engine
        What the user knows the engine as.
    inputs, outputs
        Names of the model's inputs and outputs, in its order.
    values
        Names of the inner values that can be seen.
    choices
        The whole numbers that an input may be: of a table's entries, or what it is compared with and others.
    steps
        How far numbers lie apart that the integers of a quantised tensor stand for, of floats made of such.
    rounding
        How far the engine itself is off, for values that it only approximates.
    """

    engine: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    values: Sequence[str] = ()
    choices: Mapping[str, Sequence[int]] = {}
    steps: Mapping[str, float] = {}
    rounding: Mapping[str, float] = {}

    @abstractmethod
    def run(self, arrays: Sequence[np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """Compute outputs or inner values by name from the inputs in the model's order."""
