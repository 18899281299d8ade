"""How halves fare in one network: they take other times than by themselves, for what surrounds them decides where their
data are. Of a network that was tried it is known by how much, and of one that was not it is taken to be as in others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from tvm_coexec.layers import AnyLayer, Variant
from tvm_coexec.profile.records import Sample, Side
from tvm_coexec.profile.trial_runs import TrialRun

from .drift import compare_speeds
from .predictors import labels_us, weighted_median, weights
from .residuals import Residuals

_SIDES: tuple[Side, ...] = ("cpu", "gpu")

Expect = Callable[[str, AnyLayer, Variant, int, int], float]
"""From side, layer, variant, own units and the other side's: the microseconds that are expected, 0 where none are."""


_PRIOR = 0.5
"""Networks that outweigh the assumption that others say nothing of a network."""


@dataclass(frozen=True)
class Stretch:
    """What a whole network takes longer than its halves, as they run in it, would with the waits that are planned.

    Parameters
    ----------
    log_factor
        The logarithm of the factor.
    low, high
        What is added to it at either end of the interval in which most networks are.
    """

    log_factor: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, log_factors: Sequence[float]) -> Stretch:
        """Learn from the factors of some networks; the fewer they are, the less is certain of others."""
        count = len(log_factors)
        mean = sum(log_factors) / (count + _PRIOR)
        squares = sum((one - mean) ** 2 for one in log_factors) + UNKNOWN.high**2
        either = float(np.sqrt(squares / (count + 1)))
        return cls(mean, -min(either, -UNKNOWN.low), either)


NO_STRETCH = Stretch()
UNKNOWN = Stretch(0.0, -0.1, 0.25)
"""Where no network has run: on two servers networks took up to a third longer than expected, and rarely less."""


@dataclass(frozen=True)
class Surroundings:
    """How many times as long as expected halves take in one network, from its trial runs or from those of others.

    Parameters
    ----------
    usual
        For each side, the logarithm of the factor that half of its time is below.
    residuals
        What is left, of the very kernels and layers that ran.
    by_operator
        For each side, what is added to the usual logarithm for layers of an operator, where others' networks ran.
    stretch
        What the network takes beyond its halves.
    """

    usual: Mapping[str, float] = field(default_factory=dict)
    residuals: Mapping[str, Residuals] = field(default_factory=dict)
    by_operator: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    stretch: Stretch = NO_STRETCH

    @classmethod
    def of(cls, trial_runs: Sequence[TrialRun], expect: Expect) -> Surroundings:
        """Compare what halves took with what is expected of them without this knowledge."""
        usual: dict[str, float] = {}
        residuals: dict[str, Residuals] = {}
        for side in _SIDES:
            ran = _ran(trial_runs, side, expect)
            if ran:
                samples, expected_us, log_errors = zip(*ran, strict=True)
                # Short halves count for little: clocks tell little of them.
                usual[side] = weighted_median(np.array(log_errors), np.array(expected_us))
                residuals[side] = Residuals.of(samples, np.array(log_errors) - usual[side], weights(samples))
        return cls(usual, residuals)

    @classmethod
    def elsewhere(cls, networks: Sequence[tuple[Sequence[TrialRun], Expect]]) -> Surroundings:
        """What is likely in a network that never ran, from the trial runs of others and what was expected of each."""
        usual: dict[str, float] = {}
        by_operator: dict[str, dict[str, float]] = {}
        for side in _SIDES:
            found = [ran for trial_runs, expect in networks if (ran := _ran(trial_runs, side, expect))]
            medians = [_median_error(ran) for ran in found]
            usual[side] = sum(medians) / (len(medians) + _PRIOR)
            beyond: dict[str, list[float]] = defaultdict(list)
            for ran, median in zip(found, medians, strict=True):
                for operator in {sample.layer.op for sample, _, _ in ran}:
                    own = [half for half in ran if half[0].layer.op == operator]
                    beyond[operator].append(_median_error(own) - median)
            by_operator[side] = {name: sum(logs) / (len(logs) + _PRIOR) for name, logs in sorted(beyond.items())}
        stretches = [one for trial_runs, _ in networks if (one := _stretch(trial_runs)) is not None]
        return cls(usual, {}, by_operator, Stretch.of(stretches) if stretches else UNKNOWN)

    def factors(self, side: str, layer: AnyLayer, variants: Sequence[Variant]) -> np.ndarray:
        """Give factors on the expected times of a layer's halves, an entry a variant."""
        log_factor = self.usual.get(side, 0.0) + self.by_operator.get(side, {}).get(layer.op, 0.0)
        own = self.residuals.get(side, Residuals()).factors([(layer, variant) for variant in variants])
        factors: np.ndarray = np.exp(log_factor) * own
        return factors

    def to_json(self) -> dict[str, Any]:
        """What is known of any network; the residuals are of one."""
        return {"usual": self.usual, "by_operator": self.by_operator, "stretch": asdict(self.stretch)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Surroundings:
        """Read what :meth:`to_json` made."""
        return cls(dict(values["usual"]), {}, dict(values["by_operator"]), Stretch(**values["stretch"]))

    def uncertainty_factors(self, side: str, layer: AnyLayer, variants: Sequence[Variant]) -> np.ndarray:
        """How much narrower intervals are than without this knowledge, as a factor for each variant."""
        if side not in self.residuals:
            return np.ones(len(variants))
        return self.residuals[side].uncertainty_factors([(layer, variant) for variant in variants])

    def has_run(self, side: str, layer: AnyLayer, variant: Variant) -> bool:
        """Tell whether a kernel ran in the network."""
        return side in self.residuals and (layer, variant) in self.residuals[side].kernels


def _ran(trial_runs: Sequence[TrialRun], side: Side, expect: Expect) -> list[tuple[Sample, float, float]]:
    """A side's halves as they ran, with what is expected of each and the logarithm of its error."""
    return [half for halves in _halves_by_layer(trial_runs, side, expect) for half in _of_equal_speed(halves)]


def _median_error(ran: Sequence[tuple[Sample, float, float]]) -> float:
    """The logarithm of the error that half of the expected time is below."""
    _, expected_us, log_errors = zip(*ran, strict=True)
    return weighted_median(np.array(log_errors), np.array(expected_us))


def _stretch(trial_runs: Sequence[TrialRun]) -> float | None:
    """The logarithm of what a network took over what was expected of it once its halves' times in it were known."""
    informed = [one for one in trial_runs if one.plan.total_us > 0 and not one.is_by(trial_runs[0].plan)]
    logs = [float(np.log(one.usual_us / one.plan.total_us)) for one in informed]
    return float(np.median(logs)) if logs else None


@dataclass
class _Half:
    """A half of one layer, as it ran in some trial runs.

    Parameters
    ----------
    sample
        The shortest.
    log_errors
        Logarithms of the time over the expected one, by the moment of the trial run.
    """

    sample: Sample
    expected_us: float
    log_errors: dict[str, float] = field(default_factory=dict)

    def add(self, sample: Sample, moment: str) -> None:
        """Two plans that ran turn by turn may have the half in common."""
        least_us, took_us = labels_us([self.sample, sample])
        if self.expected_us <= 0 or took_us <= 0:
            return
        if took_us < least_us:
            self.sample = sample
        log_error = float(np.log(took_us / self.expected_us))
        self.log_errors[moment] = (self.log_errors.get(moment, log_error) + log_error) / 2


def _halves_by_layer(trial_runs: Iterable[TrialRun], side: Side, expect: Expect) -> Iterable[list[_Half]]:
    """List the halves that ran on a side, for each layer of the network; equal layers at two places in it stay two."""
    found: dict[int, dict[Sample, _Half]] = defaultdict(dict)
    for trial_run in trial_runs:
        for number, sample in trial_run.samples(side):
            half = found[number].get(name := replace(sample, latency_us=()))
            if half is None:
                expected_us = expect(side, sample.layer, sample.variant, sample.units, sample.other_units)
                half = found[number][name] = _Half(sample, expected_us)
            half.add(sample, trial_run.ran_at)
    return [[half for half in halves.values() if half.log_errors] for halves in found.values()]


def _of_equal_speed(halves: Sequence[_Half]) -> Iterator[tuple[Sample, float, float]]:
    """A layer's halves with what is expected of each and the logarithm of its error, had the machine kept its speed.

    Plans that ran turn by turn are compared with each other, from the one that ran most often, at its best, to those
    that ran beside it, and on to those that ran beside these. What halves took at different times cannot be compared:
    memory that other programs use as well may be half as fast a minute later, and a machine that was busy once must not
    be believed for ever.
    """
    unknown = sorted(halves, key=lambda half: -len(half.log_errors))
    slower: dict[str, float] = {}
    while unknown:
        first = unknown[0].log_errors
        slower[min(first, key=first.__getitem__)] = 0.0
        compared = compare_speeds([half.log_errors for half in unknown], slower)
        for number, log_error in compared.items():
            yield unknown[number].sample, unknown[number].expected_us, log_error
        unknown = [half for number, half in enumerate(unknown) if number not in compared]
