"""How halves fare in one network: they take other times than by themselves, for what surrounds them decides where their
data are. Of a network that was rehearsed it is known by how much.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tvm_coexec.layers import AnyLayer, Variant

from .predictors import labels_us, weights
from .rehearsal import Rehearsal
from .remembered import Remembered
from .samples import Sample, Side

_SIDES: tuple[Side, ...] = ("cpu", "gpu")

Expect = Callable[[str, AnyLayer, Variant, int, int], float]
"""From side, layer, variant, own units and the other side's: the microseconds that are expected, 0 where none are."""


@dataclass(frozen=True)
class Surroundings:
    """By what factor halves take longer in one network than expected, from its rehearsals.

    Parameters
    ----------
    usual
        Of each side, the logarithm of the factor that half of its time is below.
    remembered
        What is left, of the very kernels and layers that ran.
    untried
        By which factor kernels that never ran in the network are expected to do better there than is known of them.
    """

    usual: Mapping[str, float] = field(default_factory=dict)
    remembered: Mapping[str, Remembered] = field(default_factory=dict)
    untried: float = 1.0

    @classmethod
    def of(cls, rehearsals: Sequence[Rehearsal], expect: Expect, untried: float = 1.0) -> Surroundings:
        """Compare what halves took with what is expected of them without this knowledge."""
        usual: dict[str, float] = {}
        remembered: dict[str, Remembered] = {}
        for side in _SIDES:
            runs = [run for runs in _runs_by_layer(rehearsals, side, expect) for run in _of_equal_speed(runs)]
            if runs:
                samples = [run.sample for run in runs]
                log_errors = np.array([run.log_error for run in runs])
                usual[side] = _weighted_median(log_errors, np.array([run.expected_us for run in runs]))
                remembered[side] = Remembered.of(samples, log_errors - usual[side], weights(samples))
        return cls(usual, remembered, untried)

    def factors(self, side: str, layer: AnyLayer, variants: Sequence[Variant]) -> np.ndarray:
        """By what the expected times of a layer's halves are to be multiplied, an entry a variant."""
        if side not in self.usual:
            return np.ones(len(variants))
        kernels = [(layer, variant) for variant in variants]
        hopes = [1.0 if kernel in self.remembered[side].kernels else self.untried for kernel in kernels]
        own: np.ndarray = self.remembered[side].factors(kernels)
        return np.exp(self.usual[side]) * own * hopes


@dataclass(frozen=True)
class _Run:
    """A half as it ran in a rehearsal, and the logarithm of its time over the expected one."""

    sample: Sample
    rehearsed: str
    expected_us: float
    log_error: float


def _runs_by_layer(rehearsals: Iterable[Rehearsal], side: Side, expect: Expect) -> Iterable[list[_Run]]:
    """Of each layer of the network its runs on a side; equal layers at two places in it stay two."""
    found: dict[int, list[_Run]] = defaultdict(list)
    for rehearsal in rehearsals:
        for number, one in rehearsal.samples(side):
            expected_us = expect(side, one.layer, one.variant, one.units, one.other_units)
            took_us = float(labels_us([one])[0])
            if expected_us > 0 and took_us > 0:
                log_error = float(np.log(took_us / expected_us))
                found[number].append(_Run(one, rehearsal.rehearsed, expected_us, log_error))
    return found.values()


def _of_equal_speed(runs: Sequence[_Run]) -> list[_Run]:
    """A layer's runs as if the machine had always been as fast as in the best run of its commonest kernel.

    Kernels that ran turn by turn are compared with each other. What they took at different times cannot be: memory that
    other programs use as well may be half as fast a minute later, and a machine that was busy once must not be believed
    for ever.
    """
    errors: dict[str, dict[Variant, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        errors[run.rehearsed][run.sample.variant].append(run.log_error)
    at = {when: {kernel: float(np.mean(each)) for kernel, each in kernels.items()} for when, kernels in errors.items()}
    times = defaultdict(list)
    for when, kernels in at.items():
        for kernel in kernels:
            times[kernel].append(when)
    commonest = max(times, key=lambda kernel: len(times[kernel]))
    known = {commonest: min(at[when][commonest] for when in times[commonest])}
    while True:
        slower = {
            when: float(np.mean([error - known[kernel] for kernel, error in kernels.items() if kernel in known]))
            for when, kernels in at.items()
            if known.keys() & kernels.keys()
        }
        beside = {kernel: [when for when in times[kernel] if when in slower] for kernel in times.keys() - known.keys()}
        found = {
            kernel: float(np.mean([at[when][kernel] - slower[when] for when in whens]))
            for kernel, whens in beside.items()
            if whens
        }
        if not found:
            return [replace(run, log_error=run.log_error - slower.get(run.rehearsed, 0.0)) for run in runs]
        known |= found


def _weighted_median(values: np.ndarray, shares: np.ndarray) -> float:
    """The value that half of the shares lie below: short halves, of which clocks tell little, count for little."""
    order = np.argsort(values)
    passed = np.cumsum(shares[order])
    return float(values[order][np.searchsorted(passed, passed[-1] / 2)])
