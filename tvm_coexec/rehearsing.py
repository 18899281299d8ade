"""Rehearses networks that a profile is tuned for: plans, runs, learns from the run, and plans again.

Every plan runs beside the best so far, turn by turn, so that a machine that slows down slows both. The best runs once
more by itself at the end: the fastest of several noisy figures is likely to have been lucky.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .graph import Graph
from .packaging import package_plan
from .planning.network import plan_anew
from .planning.plan import Plan
from .planning.rehearsal import Rehearsal, fingerprint
from .planning.split import Planner
from .profile import Profile
from .rpc.client import Session
from .target import Target

_PLANS = 4
"""Plans that are tried at most; each but the first has learned from those before."""

_ROUNDS = 8
_TURN_US = 100e3
"""What a plan runs for in its turn, if that is 2 to 20 runs."""

_TIMELINES = 9
_SEED = 1

SESSION_S = 600.0
"""Bound on what is rehearsed at once: the device may have many kernels to compile before."""


def rehearse(graph: Graph, planner: Planner, session: Session, profile: Profile, target: Target) -> None:
    """Run a network by ever better plans, and store the runs as they come; the last one stored is by the best plan.

    Raises
    ------
    MeasurementError
        A plan cannot be run, for lack of memory or of time; what was stored stays.
    """
    from tqdm import tqdm

    network, device, mechanism = fingerprint(graph), profile.facts["label"], profile.facts["mechanism"]
    known = [one for one in profile.rehearsals().get(network, ()) if one.plan.mechanism == mechanism]
    best = known[-1].plan if known else None
    with tqdm(total=_PLANS + 1, desc=f"rehearsing {graph.outputs[0]}", unit="plan") as bar:
        for number in range(bar.total):
            plan = plan_anew(graph, planner, device, mechanism, known)
            last = number == _PLANS or any(_is_same(plan, one.plan) for one in known)
            plans = [best] if last and best else [one for one in (best, plan) if one]
            runs = sorted(_run(graph, plans, session, profile, target), key=lambda run: -run.median_us)
            profile.add_rehearsals(runs)
            known, best = [*known, *runs], runs[-1].plan
            bar.set_postfix_str(f"{runs[-1].median_us / 1e3:.2f} ms")
            bar.update()
            if last:
                return


def _is_same(one: Plan, other: Plan) -> bool:
    """Whether two plans divide and compute all layers alike."""
    return [(a.layer, a.cpu_units, a.cpu, a.gpu) for a in one.layers] == [
        (b.layer, b.cpu_units, b.cpu, b.gpu) for b in other.layers
    ]


def _run(graph: Graph, plans: Sequence[Plan], session: Session, profile: Profile, target: Target) -> list[Rehearsal]:
    """Run the network by each plan, turn by turn."""
    modules = [package_plan(graph, plan, target, profile.facts, seed=_SEED).to_bytes() for plan in plans]
    expected_us = max(min(plan.total_us for plan in plans), 1.0)
    repeats = int(np.clip(_TURN_US / expected_us, 2, 20))
    answers = session.rehearse(modules, rounds=_ROUNDS, repeats=repeats, timelines=_TIMELINES)
    return [
        Rehearsal(
            fingerprint(graph),
            plan,
            tuple(latency_us),
            tuple((tuple(cpu_us), tuple(gpu_us)) for cpu_us, gpu_us in halves_us),
        )
        for plan, (latency_us, halves_us) in zip(plans, answers, strict=True)
    ]
