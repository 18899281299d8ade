"""Trial runs of the networks that a profile is tuned for: plan, run, learn from the run, and plan again.

Two kernels that are close by themselves may not be so in a network, where both sides read weights from memory. So the
first plans give those kernels a chance that have not run in it yet, and the last ones use what is known. Every plan
takes turns with the best so far, so that a machine that slows down slows both; a turn before or after which
both sides were much slower than at their best is repeated. The best runs once more by itself at the end: the fastest of
several noisy figures is likely to have been lucky. Several networks take turns plan by plan: what each is expected to
take then comes from the whole time of the trial runs, not from one minute of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tvm_coexec.compiler.packaging import package_plan
from tvm_coexec.compiler.probes import canary
from tvm_coexec.compiler.target import Target
from tvm_coexec.graph import Graph
from tvm_coexec.planning.network import plan_anew
from tvm_coexec.planning.plan import Plan
from tvm_coexec.planning.split import Planner
from tvm_coexec.profile import Profile
from tvm_coexec.profile.store import now
from tvm_coexec.profile.trial_runs import TrialRun, fingerprint
from tvm_coexec.rpc.client import Session
from tvm_coexec.rpc.outcomes import SessionLostError

_CURIOUS_PLANS, _PLANS = 4, 2
"""Plans that are tried at most, each of which has learned from those before: with and without hopes for new kernels.
Where nothing has run yet, there is nothing to hope beyond."""

MOST_RUNS = _CURIOUS_PLANS + _PLANS + 1
"""Trial runs of a network: that of every plan, and the last one."""

_UNTRIED_FACTOR = 0.9
"""The factor by which a kernel may well be better in a network than by itself, other kernels being no better."""

_ROUNDS = (2, 8)
_ALL_US, _UNCOUNTED = 60e6, 6
"""All turns of a trial run are to take about so long, within these bounds; runs in a turn that warm up or are timed by
halves."""

_TURN_US = 100e3
"""What a plan runs for in its turn, if that is 2 to 20 runs."""

_TIMELINES = 2
"""Runs in a turn of which the halves are timed."""

_SEED = 1
"""The device makes the weights by itself from it: speed depends on none of them, and none is sent."""

SESSION_S = 600.0
"""Bound on a session of trial runs: the device may have many kernels to compile before."""


class TrialRunner:
    """Runs networks through one session, and stores the runs in a profile.

    Parameters
    ----------
    facts
        What the device says of itself now.
    """

    def __init__(
        self, planner: Planner, session: Session, profile: Profile, target: Target, facts: Mapping[str, Any]
    ) -> None:
        self.planner, self.session, self.profile, self.target, self.facts = planner, session, profile, target, facts
        self._canary = canary(target, facts).to_bytes() if facts.get("is_bench") else None

    def run_trials(self, graph: Graph) -> Iterator[TrialRun]:
        """Run a network by ever better plans, and store the runs as they come; the last one stored is by the best.

        Yields
        ------
        TrialRun
            The best plan so far, as it ran: after each of at most ``MOST_RUNS`` runs.

        Raises
        ------
        MeasurementError
            A plan cannot be run, for lack of memory or of time; what was stored stays.
        KernelError
            A kernel does not compile.
        """
        mechanism = self.facts["mechanism"]
        known = [
            one for one in self.profile.trial_runs().get(fingerprint(graph), ()) if one.plan.mechanism == mechanism
        ]
        for untried, most in ((_UNTRIED_FACTOR, _CURIOUS_PLANS), (1.0, _PLANS)):
            for _ in range(most):
                plan = plan_anew(graph, self.planner, self.facts["label"], mechanism, known, untried)
                if any(one.is_by(plan) for one in known):
                    break
                known += self._run(graph, [*(one.plan for one in known[-1:]), plan])
                yield known[-1]
        yield from self._run(graph, [known[-1].plan])

    def _run(self, graph: Graph, plans: Sequence[Plan]) -> list[TrialRun]:
        """Run the network by each plan, turn by turn, and store the runs, the best one last."""
        modules = [package_plan(graph, plan, self.target, self.facts, seed=_SEED).to_bytes() for plan in plans]
        repeats = int(np.clip(_TURN_US / max(plans[-1].total_us, 1.0), 2, 20))
        turn_us = (repeats + _UNCOUNTED) * plans[-1].total_us
        rounds = int(np.clip(_ALL_US / (len(plans) * max(turn_us, 1.0)), *_ROUNDS))
        counts = {"rounds": rounds, "repeats": repeats, "timelines": _TIMELINES}
        ask = partial(self.session.run_trials, modules, self._canary, **counts)
        try:
            times = ask()
        except SessionLostError:  # the next call has a session of its own, maybe on another device of the key
            times = ask()
        network = fingerprint(graph)
        ran_at = now()
        runs = [TrialRun(network, plan, one, ran_at) for plan, one in zip(plans, times, strict=True)]
        if len(runs) > 1 and _is_slower(runs[1], runs[0], rounds):
            runs.reverse()
        self.profile.add_trial_runs(runs)
        return runs


def _is_slower(run: TrialRun, other: TrialRun, rounds: int) -> bool:
    """Whether one of two that ran turn by turn took longer: turns are compared, since a machine's speed changes."""
    turns_us, others_us = (np.median(np.reshape(one.times.latency_us, (rounds, -1)), axis=1) for one in (run, other))
    return bool(np.median(turns_us / others_us) >= 1)
