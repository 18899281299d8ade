"""How much slower a machine was at one moment than at another, told from what ran at both.

Trial runs have plans in common; while layers are measured a canary runs from time to time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tvm_coexec.profile.records import Sample

from .features import Halves, Processor
from .predictors import LatencyPredictor, labels_us, train

_NEIGHBOURS = 2
"""Runs of the canary before and after one that tell with it how fast the side was: one alone is as noisy as a layer."""

_ALIKE, _USUAL_STEPS = 0.1, 3.0
"""Runs are of one speed whose logarithms differ by no more, or by no more than so many times what runs usually differ
by from the next: on a disturbed device the canary is as noisy as all else. Each run believed, the halves of the CPU
beside an H200, where runs differ by 14 %, were predicted to 22 %, 30 % of them within 10 %; so it is 19 and 38."""

_DOUBTFUL = np.log(1.3)
"""A canary that tells of a larger change, as a logarithm, is believed where the samples bear it out. Beside an H200 on
a disturbed host it told of 12 to 56 times for 33 halves, none of which was slow, and of 1.4 times for 49, which were:
believed, the CPU's halves were predicted to 31 %, and are to 18 %. Smaller changes are less than predictions err."""

_LEAST_LAYERS, _USUAL_QUANTILE = 8, 0.9
"""Layers from which on samples can bear something out, and the quantile of errors up to which these are usual."""


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


def at_usual_speed(samples: Sequence[Sample], processors: Mapping[str, Processor] | None = None) -> list[Sample]:
    """The samples as they would be, had each side always been as fast as it usually was.

    Parameters
    ----------
    processors
        The processor of each side whose samples have to bear out what the canary tells; of other sides it is believed.
    """
    slowness = _slowness(samples)
    for side, processor in (processors or {}).items():
        own = np.array([number for number, sample in enumerate(samples) if sample.side == side], int)
        slowness[own] = _borne_out([samples[number] for number in own], slowness[own], side, processor)
    return _corrected(samples, slowness)


def drift_percent(measured: Sequence[Sample], corrected: Sequence[Sample]) -> float:
    """How far the side's speed was from the usual one, in the mean over the samples, before and after correction."""
    factors = [one.median_us / other.median_us for one, other in zip(measured, corrected, strict=True)]
    return 100 * float(np.abs(np.array(factors) - 1).mean()) if factors else 0.0


def _corrected(samples: Sequence[Sample], slowness: np.ndarray) -> list[Sample]:
    return [
        replace(sample, latency_us=tuple(us / factor for us in sample.latency_us))
        for sample, factor in zip(samples, slowness, strict=True)
    ]


def _borne_out(samples: Sequence[Sample], slowness: np.ndarray, side: str, processor: Processor) -> np.ndarray:
    """What the canary told of one side, but 1 where its samples plainly took no longer than others teach.

    Doubtful samples are not learned from, and those in a row are judged together. Half of the other layers tell how far
    what is learned of the rest is off: where layers differ as much as the canary tells, it is believed.
    """
    told = np.log(slowness)
    doubtful = np.abs(told) > _DOUBTFUL
    if not doubtful.any():
        return slowness
    sure: list[int] = np.flatnonzero(~doubtful).tolist()
    undoubted = _corrected([samples[number] for number in sure], slowness[sure])
    layers = {layer: number for number, layer in enumerate(dict.fromkeys(sample.layer for sample in undoubted))}
    if len(layers) < _LEAST_LAYERS:
        return slowness
    predictor = train([sample for sample in undoubted if layers[sample.layer] % 2], side, processor)
    others = [one for one in undoubted if not layers[one.layer] % 2 and predictor.knows(one.layer, one.variant)]
    numbers: list[int] = np.flatnonzero(doubtful).tolist()
    judged = [number for number in numbers if predictor.knows(samples[number].layer, samples[number].variant)]
    if not others or not judged:
        return slowness
    usual = float(np.quantile(np.abs(_log_errors(predictor, others)), _USUAL_QUANTILE))
    believed = slowness.copy()
    for row in np.split(np.array(judged), np.flatnonzero(np.diff(judged) > 1) + 1):
        took = _log_errors(predictor, [samples[int(number)] for number in row])
        if np.median(np.abs(took)) <= usual < np.median(np.abs(took - told[row])):
            believed[row] = 1.0
    return believed


def _log_errors(predictor: LatencyPredictor, samples: Sequence[Sample]) -> np.ndarray:
    return np.log(labels_us(samples) / predictor.predict(Halves.of(samples)))


def _slowness(samples: Sequence[Sample]) -> np.ndarray:
    """Tell how many times as long as usually the canary took when each sample was measured; 1 where nothing tells."""
    slowness = np.ones(len(samples))
    for side in ("cpu", "gpu"):
        own = [number for number, sample in enumerate(samples) if sample.side == side]
        told_us = [samples[number].canary_us for number in own if samples[number].canary_us > 0]
        usual_us = np.median(told_us) if told_us else 1.0
        for device in {samples[number].run for number in own}:  # devices that measured by turns
            its = [number for number in own if samples[number].run == device]
            about_us = _smooth(np.array([samples[number].canary_us for number in its]))
            slowness[its] = np.where(np.isnan(about_us), 1.0, about_us / usual_us)
    return slowness


def _smooth(canary_us: np.ndarray) -> np.ndarray:
    """What the canary took about when each sample was measured, in the order of measuring; NaN where nothing tells.

    Where none ran it took what it took before or after, whichever is less.
    """
    told = np.flatnonzero(canary_us)
    begins = np.flatnonzero(np.diff(canary_us[told], prepend=0.0))
    about_us = np.full(len(canary_us), np.nan)
    about_us[told] = np.repeat(_of_one_speed(canary_us[told][begins]), np.diff(begins, append=len(told)))
    return np.fmin(_last_known(about_us), _last_known(about_us[::-1])[::-1])


def _of_one_speed(runs_us: np.ndarray) -> np.ndarray:
    """What the canary took about at each time: the median of those near it that are alike.

    One that is alike to none near it stands for itself: it ran before and after, and took no less either time.
    """
    logs = np.log(runs_us)
    steps = np.abs(np.diff(logs))
    alike = max(_ALIKE, _USUAL_STEPS * float(np.median(steps))) if len(steps) else _ALIKE
    near_us = []
    for run, own in enumerate(logs):
        near = slice(max(run - _NEIGHBOURS, 0), run + _NEIGHBOURS + 1)
        near_us.append(np.median(runs_us[near][np.abs(logs[near] - own) <= alike]))
    return np.array(near_us)


def _last_known(values: np.ndarray) -> np.ndarray:
    """Each value, or the last one before that is known; NaN where none is."""
    last = np.maximum.accumulate(np.where(np.isnan(values), -1, np.arange(len(values))))
    return np.where(last < 0, np.nan, values[last])
