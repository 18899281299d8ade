"""How good predictions are for layers that were never measured."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from tvm_coexec.errors import MeasurementError
from tvm_coexec.layers import AnyLayer
from tvm_coexec.profile.records import Sample

from .base_time import FLOPS_TERMS, BaseTime
from .features import FeatureSet, Halves, Processor, describe
from .kernel_facts import implementation_feature
from .predictors import labels_us, train, weights
from .uncertainty import INSIDE, Uncertainty, learn_uncertainty

FULL = "all features"
WITHOUT_KERNEL = "without kernel and dispatch features"
FLOPS_REGRESSION = "linear regression on FLOPs"

_QUIET_PERCENT, _DISTURBED_PERCENT = 4.0, 10.0
_FOLDS = 5
"""Parts of the shapes, each of which is held out once."""
_TOO_FEW = "held-out errors need two shapes of one kind of layer; tune for longer"
_NEVER = -1
"""The part of what is never held out."""
_SEED = 0
_PLAIN: dict[str, Any] = {"epilogue": (), "axis": "channels"}
"""Fields in which layers of one shape may differ."""

_Predict = Callable[[Sequence[Sample]], np.ndarray]


@dataclass(frozen=True)
class Score:
    """Errors on held-out samples: mean absolute relative error, and the share of predictions within 10 %."""

    mape_percent: float
    within_10_percent: float

    @classmethod
    def of(cls, predicted_us: np.ndarray, measured_us: np.ndarray) -> Score:
        relative = np.abs(predicted_us / measured_us - 1)
        return cls(100 * float(relative.mean()), 100 * float((relative <= 0.1).mean()))


@dataclass(frozen=True)
class Evaluation:
    """Held-out errors of one side.

    Parameters
    ----------
    noise_percent, drift_percent
        What no model can predict: by how much repetitions of one sample spread, and how far the side's speed was from
        the usual one while samples were measured, for which they were corrected.
    inside_percent
        Of the held-out samples, those that lay in the interval which was predicted for them.
    scores
        Errors by model.
    uncertainty
        What the errors of the model with all features teach of its errors on other layers.
    """

    side: str
    samples: int
    shapes: int
    noise_percent: float
    drift_percent: float
    inside_percent: float
    scores: dict[str, Score]
    uncertainty: Uncertainty

    def to_json(self) -> dict[str, Any]:
        """All but the uncertainty, which a predictor keeps."""
        figures = ("side", "samples", "shapes", "noise_percent", "drift_percent", "inside_percent")
        scores = {name: asdict(score) for name, score in self.scores.items()}
        return {name: getattr(self, name) for name in figures} | {"scores": scores}


def evaluate(samples: Sequence[Sample], side: str, processor: Processor, drift_percent: float = 0.0) -> Evaluation:
    """Cross-validate by shape: each sample is predicted by models that saw no layer of its shape.

    A random choice of samples would hold out splits between neighbouring splits of the same layer, and show how
    well a model interpolates, not how well it plans a new layer. An epilogue does not make a shape a new one.

    Parameters
    ----------
    drift_percent
        What the samples were corrected by.
    """
    models = {FULL: _full_model, WITHOUT_KERNEL: _layer_model, FLOPS_REGRESSION: _flops_model}
    measured_us = labels_us(samples)
    predicted_us = {name: np.zeros(len(samples)) for name in models}
    folds = np.full(len(samples), _NEVER)
    for number, fold in enumerate(_folds(samples)):
        kept = [sample for sample, hidden in zip(samples, fold, strict=True) if not hidden]
        held_out = fold & _kernels_among(samples, kept)
        folds[held_out] = number
        hidden = [sample for sample, hidden in zip(samples, held_out, strict=True) if hidden]
        if not hidden:
            continue
        for name, fit in models.items():
            predicted_us[name][held_out] = fit(kept, side, processor)(hidden)
    scored = folds != _NEVER
    if not scored.any():
        raise MeasurementError(_TOO_FEW)
    halves = Halves.of(samples)
    matrix = FeatureSet.for_halves(halves).matrix(describe(halves, side, processor))
    log_errors = np.log(measured_us[scored] / predicted_us[FULL][scored])
    uncertainty, inside = learn_uncertainty(matrix[scored], log_errors, folds[scored])
    return Evaluation(
        side=side,
        samples=len(samples),
        shapes=len({_shape(sample.layer) for sample in samples}),
        noise_percent=noise_percent(samples),
        drift_percent=drift_percent,
        inside_percent=100 * inside,
        scores={name: Score.of(times_us[scored], measured_us[scored]) for name, times_us in predicted_us.items()},
        uncertainty=uncertainty,
    )


def noise_percent(samples: Sequence[Sample]) -> float:
    """Spread of a sample's repetitions: mean distance from their median, relative; the median over the samples."""
    spreads = []
    for sample in samples:
        repetitions = np.array(sample.latency_us)
        median = np.median(repetitions)
        spreads.append(float(np.abs(repetitions - median).mean() / median))
    return 100 * float(np.median(spreads))


def format_table(evaluations: Sequence[Evaluation]) -> str:
    """Write a table for the terminal: a line for each side and model."""
    lines = [f"{'side':5}{'model':40}{'MAPE':>8}{'within 10 %':>13}"]
    for evaluation in evaluations:
        for name, score in evaluation.scores.items():
            lines.append(f"{evaluation.side:5}{name:40}{score.mape_percent:6.1f} %{score.within_10_percent:11.0f} %")
        counts = f"{evaluation.samples} samples of {evaluation.shapes} shapes"
        lines.append(f"{'':5}{counts}; repetitions of one sample spread by {evaluation.noise_percent:.1f} %,")
        lines.append(f"{'':5}and the speed drifted by {evaluation.drift_percent:.1f} %: {_verdict(evaluation)}")
        inside = f"{evaluation.inside_percent:.0f} % of those held out lay in the interval predicted"
        aim = f"{inside}, which is to hold {100 * INSIDE:.0f} %"
        lines.append(f"{'':5}{aim}")
    return "\n".join(lines)


def _verdict(evaluation: Evaluation) -> str:
    """How noisy a side is, and what that means for its predictions."""
    unsteady_percent = max(evaluation.noise_percent, evaluation.drift_percent)
    if unsteady_percent < _QUIET_PERCENT:
        return "it is quiet: runs take about the predicted time"
    if unsteady_percent < _DISTURBED_PERCENT:
        return "it is not quite quiet: runs take some per cent longer than predicted"
    return "it is disturbed: runs take longer than predicted by about that much; end other work for better figures"


def _shape(layer: AnyLayer) -> AnyLayer:
    """What layers have in common that differ in their epilogues alone, or in the axis that they are divided along."""
    names = {field.name for field in fields(layer)}
    return replace(layer, **{name: value for name, value in _PLAIN.items() if name in names})


def _folds(samples: Sequence[Sample]) -> Iterator[np.ndarray]:
    """Give masks of the held-out samples; every fold has its share of each operator.

    Every shape is held out once, but for one that is the only shape of its operator: no model could predict it.
    """
    shapes: dict[str, list[AnyLayer]] = {}
    for shape in dict.fromkeys(_shape(sample.layer) for sample in samples):
        shapes.setdefault(shape.op, []).append(shape)
    fold_of: dict[AnyLayer, int] = {}
    for of_op in shapes.values():
        random.Random(_SEED).shuffle(of_op)
        fold_of |= {shape: index % _FOLDS if len(of_op) > 1 else _NEVER for index, shape in enumerate(of_op)}
    fold = np.array([fold_of[_shape(sample.layer)] for sample in samples])
    if fold.max(initial=_NEVER) == _NEVER:
        raise MeasurementError(_TOO_FEW)
    for index in range(fold.max() + 1):
        yield fold == index


def _kernels_among(samples: Sequence[Sample], kept: Sequence[Sample]) -> np.ndarray:
    """Which samples are of kernels that are among those kept: of others no model could say anything."""
    known = {implementation_feature(sample.layer, sample.variant) for sample in kept}
    return np.array([implementation_feature(sample.layer, sample.variant) in known for sample in samples])


def _full_model(samples: Sequence[Sample], side: str, processor: Processor) -> _Predict:
    predictor = train(samples, side, processor)
    return lambda held_out: predictor.predict(Halves.of(held_out))


def _layer_model(samples: Sequence[Sample], side: str, processor: Processor) -> _Predict:
    predictor = train(samples, side, processor, groups=("layer", "contention"))
    return lambda held_out: predictor.predict(Halves.of(held_out))


def _flops_model(samples: Sequence[Sample], side: str, processor: Processor) -> _Predict:
    """Fitted to relative errors, as the other models are: the strongest form of this baseline."""
    described = describe(Halves.of(samples), side, processor)
    line = BaseTime.fit(described, labels_us(samples), weights(samples), FLOPS_TERMS)
    return lambda held_out: line.predict(describe(Halves.of(held_out), side, processor))
