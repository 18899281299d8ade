"""Damaged profiles: each is refused in a line, or plans a network in which every layer is whole."""

from __future__ import annotations

import platform
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from damages import damaged
from outcomes import Outcome
from synthetic_device import PLANNING, PROCESSOR, measure, some_layers, variants

from tvm_coexec.api import planner_of
from tvm_coexec.errors import FileFormatError, InputError
from tvm_coexec.graph import Graph, Node, Tensor
from tvm_coexec.layers import Linear
from tvm_coexec.planning.plan import Plan
from tvm_coexec.planning.rules import plan_by_rule
from tvm_coexec.prediction.estimates import fit_estimates
from tvm_coexec.prediction.predictors import train
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Candidate, NetworkTimes
from tvm_coexec.profile.trial_runs import TrialRun

FACTS = {
    **{"name": "pretended: gpu", "label": "pretended", "mechanism": "svm", "cpu_cores": [1], "gpu_cores": [0]},
    **{"machine": platform.machine(), "cpu_features": ["avx512f"], "device_type": "cpu"},
    **{"max_group_size": 4096, "compute_units": 1},
}


@cache
def _network() -> Graph:
    """Two linear layers, one after the other."""
    first, second = Linear(9, 64, 96), Linear(9, 96, 160)
    tensors = {name: Tensor(name, shape) for name, shape in [("x", (9, 64)), ("t", (9, 96)), ("y", (9, 160))]}
    return Graph(tensors, ["x"], ["y"], [Node("first", first, "x", None, "t"), Node("second", second, "t", None, "y")])


def _plan(profile: Profile) -> Plan:
    found = planner_of(profile)
    return plan_by_rule(_network(), "predicted", profile.facts, found.hardware, found, _measure_nothing)


def _measure_nothing(_layers: object) -> None:
    raise AssertionError("a profile's plan measures nothing")


@cache
def _undamaged() -> Path:
    """A profile of a device that is made up, tuned to the end."""
    folder = tempfile.TemporaryDirectory()
    _undamaged.folder = folder  # type: ignore[attr-defined] # as long as this process lives
    path = Path(folder.name) / "profile"
    layers = some_layers(8, seed=3)
    samples = [sample for side in ("cpu", "gpu") for sample in measure(layers, side)]
    estimates_us = {side: dict(one.coefficients) for side, one in fit_estimates(samples).items()}
    planning = {**PLANNING, "estimates_us": estimates_us}
    with Profile.create(path, FACTS) as profile:
        profile.add_samples(samples)
        for side in ("cpu", "gpu"):
            train([sample for sample in samples if sample.side == side], side, PROCESSOR).save(
                profile.predictor_path(side)
            )
        profile.describe(families=["linear"], report={}, planning=planning)
        plan = _plan(profile)
        times = NetworkTimes((9.0, 8.5), tuple(((1.5,), (2.5,)) for _ in plan.layers))
        profile.add_trial_runs([TrialRun("a network", plan, times, "2026-11-27T23:30:44+00:00")])
        cpu, gpu = (variants(layers[0], side)[0] for side in ("cpu", "gpu"))
        profile.add_failure(Candidate(layers[0], cpu, gpu), "the kernel hangs")
    return path


def trial(seed: int) -> Outcome:
    """Open one profile, read all that it holds, and plan by it."""
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile"
        shutil.copytree(_undamaged(), path)
        files = sorted(file for file in path.iterdir() if file.is_file())
        chosen = files[random.integers(0, len(files))]
        chosen.write_bytes(damaged(chosen.read_bytes(), random))
        try:
            with Profile.open(path) as profile:
                list(profile.samples()), profile.runs(), profile.failures(), profile.trial_runs()
                plan = _plan(profile)
        except (FileFormatError, InputError) as error:  # the latter where the name of what planning needs is damaged
            is_line = "\n" not in str(error)
            return Outcome("right") if is_line else Outcome("raised", f"an error of several lines: {error}")
    is_whole = all(0 <= layer.cpu_units <= layer.layer.units for layer in plan.layers)
    fits = [layer.layer for layer in plan.layers] == [node.layer for node in _network().nodes]
    return Outcome("right") if is_whole and fits else Outcome("wrong", f"{chosen.name}: {plan}")
