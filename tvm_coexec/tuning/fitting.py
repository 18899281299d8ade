"""Train the predictors of a profile on its samples, and judge them on layers that are held out."""

from __future__ import annotations

from dataclasses import asdict, replace

from tvm_coexec.prediction.drift import at_usual_speed
from tvm_coexec.prediction.estimates import fit_estimates
from tvm_coexec.prediction.evaluation import Evaluation, evaluate
from tvm_coexec.prediction.features import Processor
from tvm_coexec.prediction.noise import Noise
from tvm_coexec.prediction.predictors import LatencyPredictor, newest, train
from tvm_coexec.prediction.reads import Reads
from tvm_coexec.profile import Profile


def processors(profile: Profile) -> dict[str, Processor]:
    """What the features know of each side's processor."""
    facts, reads = profile.facts, (profile.planning or {}).get("reads", {})
    workers = {"cpu": len(facts["cpu_cores"]), "gpu": facts["compute_units"]}
    local_bytes = facts.get("local_memory_bytes", Processor.local_bytes)
    return {
        side: Processor(count, Reads.from_json(reads.get(side, {})), local_bytes) for side, count in workers.items()
    }


def learn(profile: Profile) -> dict[str, LatencyPredictor]:
    """Train a predictor of each side, from the newest sample of each half."""
    samples = at_usual_speed(newest(profile.samples()))
    return {
        side: train([sample for sample in samples if sample.side == side], side, processor)
        for side, processor in processors(profile).items()
    }


def fit(profile: Profile) -> list[Evaluation]:
    """Train both predictors on all samples of a profile, and store them with their error on held-out layers."""
    measured = list(profile.samples())
    samples = at_usual_speed(newest(measured))
    evaluations = []
    for side, predictor in learn(profile).items():
        own = [sample for sample in samples if sample.side == side]
        evaluations.append(evaluate(own, side, predictor.processor))
        replace(predictor, uncertainty=evaluations[-1].uncertainty).save(profile.predictor_path(side))
    usual = [sample for sample in samples if not sample.variant.threads]
    profile.describe(
        report={evaluation.side: evaluation.to_json() for evaluation in evaluations},
        planning={
            **(profile.planning or {}),
            "estimates_us": {side: dict(one.coefficients) for side, one in fit_estimates(usual).items()},
            "noise": asdict(Noise.of(measured)),
        },
    )
    return evaluations
