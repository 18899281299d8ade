"""How much slower a machine was at one moment than at another, told from what ran at both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def compare_speeds(took: Sequence[Mapping[str, float]], slower: dict[str, float]) -> dict[int, float]:
    """Tell how slow the machine was at some moments from what ran at these and at others, and so on from these.

    Parameters
    ----------
    took
        Logarithms of times, by the moment, of whatever ran at several.
    slower
        Logarithms of how slow the machine was at the moments to begin with; those that can be compared are added.

    Returns
    -------
    dict
        The logarithm at a moment of 0 of each entry of ``took`` that can be compared, by its number, as found.
    """
    found: dict[int, float] = {}
    unknown = dict(enumerate(took))
    while (number := next((number for number, one in unknown.items() if slower.keys() & one.keys()), None)) is not None:
        one = unknown.pop(number)
        found[number] = float(np.mean([log - slower[moment] for moment, log in one.items() if moment in slower]))
        for moment, log in one.items():
            slower.setdefault(moment, log - found[number])
    return found
