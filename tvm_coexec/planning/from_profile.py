"""Make the planner of a tuned profile."""

from __future__ import annotations

from typing import Any

from tvm_coexec.errors import InputError
from tvm_coexec.layers import Hardware
from tvm_coexec.prediction.base_time import BaseTime
from tvm_coexec.prediction.memory_model import MemoryModel
from tvm_coexec.prediction.noise import Noise
from tvm_coexec.prediction.predictors import LatencyPredictor
from tvm_coexec.prediction.surroundings import Surroundings
from tvm_coexec.profile import Profile
from tvm_coexec.profile.rows import damaged

from .division import Overheads
from .split import Planner


def planner(profile: Profile, hardware: Hardware) -> Planner:
    """Make the planner of a tuned profile, for what its device's kernels are chosen by."""
    known = _planning(profile)
    measured = profile.measured_variants()
    cpu, gpu = (LatencyPredictor.load(profile.predictor_path(side)) for side in ("cpu", "gpu"))
    threads = {variant.threads for (side, _), variants in measured.items() if side == "cpu" for variant in variants}
    try:
        overheads = Overheads(**known["overheads"])
        estimates = {side: BaseTime(tuple(terms.items())) for side, terms in known["estimates_us"].items()}
        memory_model, noise = MemoryModel.from_json(known["memory_model"]), Noise.from_json(known["noise"])
        in_networks = known.get("in_networks")
        elsewhere = Surroundings.from_json(in_networks) if in_networks else Surroundings.elsewhere([])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(profile.path, error) from None
    return Planner(
        cpu,
        gpu,
        hardware,
        overheads,
        estimates=estimates,
        memory_model=memory_model,
        noise=noise,
        elsewhere=elsewhere,
        measured=measured,
        failed=profile.failed_variants(),
        trial_runs=profile.trial_runs(),
        threads=tuple(sorted(threads)) if cpu.has_learned_threads else (0,),
    )


def check_tuned(profile: Profile) -> None:
    """Refuse a profile by which nothing can be planned, since its tuning did not come to its end."""
    _planning(profile)


def _planning(profile: Profile) -> dict[str, Any]:
    known = profile.planning if isinstance(profile.planning, dict) else {}
    missing = {"overheads", "memory_model", "estimates_us", "noise"} - known.keys()
    if missing:
        raise InputError(
            f"{profile.path} was not tuned to the end or by an older release: it lacks {' and '.join(sorted(missing))};"
            f" go on with `tvm-coexec tune --out {profile.path}`, its device and families"
        )
    return known
