"""The choice among the trial runs of a network: the best plan, and the time that it is expected to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tvm_coexec.prediction.drift import compare_speeds
from tvm_coexec.prediction.uncertainty import TAILS
from tvm_coexec.profile.records import HalvesUs
from tvm_coexec.profile.trial_runs import TrialRun

from .plan import LayerPlan, Plan


def best_plan(trial_runs: Sequence[TrialRun]) -> Plan:
    """The plan of the last of some trial runs, expected to take the median of all runs by it, and each half likewise.

    Not the time of its least disturbed trial run: other programs disturb a user's runs as well, and the least of
    several noisy figures is too small. Its runs are taken as if the machine had been as fast as it usually was while
    the network ran, since some plans happen to run when it is slow.
    """
    plan = trial_runs[-1].plan
    slowness = _slowness(trial_runs)
    times = [one.times.faster(slowness[one.ran_at]) for one in trial_runs if one.is_by(plan)]
    layers = tuple(
        _as_it_ran(layer, [one.halves_us[number] for one in times]) for number, layer in enumerate(plan.layers)
    )
    runs_us = [us for one in times for us in one.latency_us]
    low_us, total_us, high_us = np.quantile(runs_us, [TAILS[0], 0.5, TAILS[1]]).tolist()
    return replace(plan, layers=layers, total_us=total_us, tried=True, interval_us=(low_us, high_us))


def _slowness(trial_runs: Sequence[TrialRun]) -> dict[str, float]:
    """How many times as long as usual runs took, at each moment that can be compared with that of the last trial run.

    Plans that ran turn by turn at one moment tell it from others at which one of them ran, too, and so on from these.
    """
    plans: list[tuple[TrialRun, dict[str, float]]] = []
    for one in trial_runs:
        log_us = next((known for other, known in plans if one.is_by(other.plan)), None)
        if log_us is None:
            plans.append((one, log_us := {}))
        log_us[one.ran_at] = float(np.log(one.usual_us))
    slower = {trial_runs[-1].ran_at: 0.0}
    compare_speeds([log_us for _, log_us in plans], slower)
    median = float(np.median(list(slower.values())))
    return {moment: float(np.exp(log_factor - median)) for moment, log_factor in slower.items()}


def _as_it_ran(layer: LayerPlan, halves_us: Sequence[HalvesUs]) -> LayerPlan:
    """A layer with the medians of its halves' times, where these were taken."""
    planned = (layer.cpu_us, layer.gpu_us)
    taken = ([us for one in halves_us for us in one[side]] for side in range(len(planned)))
    cpu_us, gpu_us = (float(np.median(us)) if us else plan for us, plan in zip(taken, planned, strict=True))
    longer_us = max(cpu_us, gpu_us) - max(planned)
    return replace(
        layer,
        cpu_us=cpu_us,
        gpu_us=gpu_us,
        total_us=layer.total_us + longer_us,
        cpu_interval_us=(cpu_us, cpu_us),
        gpu_interval_us=(gpu_us, gpu_us),
    )
