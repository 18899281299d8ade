"""Train the predictors of a profile on its samples, and judge them on layers that are held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from tvm_coexec.prediction.drift import at_usual_speed, drift_percent
from tvm_coexec.prediction.estimates import fit_estimates
from tvm_coexec.prediction.evaluation import Evaluation, evaluate
from tvm_coexec.prediction.features import Processor
from tvm_coexec.prediction.noise import Noise
from tvm_coexec.prediction.predictors import LatencyPredictor, newest, train
from tvm_coexec.prediction.reads import Reads
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Sample


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
    sides = processors(profile)
    return _train(at_usual_speed(newest(profile.samples()), sides), sides)


def _train(samples: Sequence[Sample], sides: Mapping[str, Processor]) -> dict[str, LatencyPredictor]:
    return {
        side: train([sample for sample in samples if sample.side == side], side, processor)
        for side, processor in sides.items()
    }


def fit(profile: Profile) -> list[Evaluation]:
    """Train both predictors on all samples of a profile, and store them with their error on held-out layers."""
    sides, all_measured = processors(profile), list(profile.samples())
    measured = newest(all_measured)
    samples = at_usual_speed(measured, sides)
    evaluations = []
    for side, predictor in _train(samples, sides).items():
        before, own = ([sample for sample in some if sample.side == side] for some in (measured, samples))
        evaluations.append(evaluate(own, side, predictor.processor, drift_percent(before, own)))
        replace(predictor, uncertainty=evaluations[-1].uncertainty).save(profile.predictor_path(side))
    usual = [sample for sample in samples if not sample.variant.threads]
    profile.describe(
        report={evaluation.side: evaluation.to_json() for evaluation in evaluations},
        planning={
            **(profile.planning or {}),
            "estimates_us": {side: dict(one.coefficients) for side, one in fit_estimates(usual).items()},
            "noise": asdict(Noise.of(all_measured)),
        },
    )
    return evaluations
