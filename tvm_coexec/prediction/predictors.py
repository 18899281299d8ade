"""Predicts the time of a half: a few-term base time, multiplied by what is usual of its implementation, and by what
XGBoost learned of the rest.

What remains of the error for the very kernels that were measured is kept as residuals.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_coexec.errors import FileFormatError, MeasurementError, last_line
from tvm_coexec.files import read_file, whole_file
from tvm_coexec.layers import AnyLayer, Variant
from tvm_coexec.profile.records import Sample
from tvm_coexec.version import __version__

from .base_time import KERNEL_TERMS, LAYER_TERMS, PRODUCT_TERMS, THREAD_TERMS, BaseTime
from .features import (
    FEATURE_VERSION,
    GROUPS,
    THREAD_NAMES,
    FeatureSet,
    Halves,
    Processor,
    describe,
)
from .kernel_facts import IMPLEMENTATION_PREFIX, implementation_feature
from .residuals import Residuals
from .uncertainty import Uncertainty

if TYPE_CHECKING:
    import xgboost

FORMAT = "tvm-coexec predictor"
FORMAT_VERSION = 5
"""Counts up with every change after which a release would misread what another wrote."""

_METADATA = "tvm_coexec"
_CHECKSUM = "tvm_coexec_checksum"
_RESIDUALS = "tvm_coexec_residuals"
_UNCERTAINTY = "tvm_coexec_doubt"
_CHECKSUM_PATTERN = re.compile(rb"sha256:([0-9a-f]{64})")
_NO_CHECKSUM = b"sha256:" + b"0" * 64

_ROUNDS = 300
"""Trees of a predictor."""
_DEPTHS, _MANY_SAMPLES = (3, 5), 2000
"""Depths of trees that learn from fewer samples, and from so many: on those of an H200 and of a disturbed bench device
deeper trees gain 2 % of the halves from 2,800 samples on, and lose as many below 1,300."""

_PARAMETERS: dict[str, Any] = {
    "objective": "reg:squarederror",
    "tree_method": "hist",
    "eta": 0.05,
    "min_child_weight": 3,
    "subsample": 0.7,
    "colsample_bynode": 0.4,
    "base_score": 0.0,
    "nthread": 1,
    "seed": 0,
}
"""The target is the logarithm of a ratio, so its error is the relative error of the time."""

_OUTLIERS = 3.0
"""Usual distances from what is usual, beyond which a sample's is cut off: measured times have outliers, and all of them
are long ones. A loss that is absolute instead of squared learned nothing of kernels that are far off together."""

_IMPLEMENTATION_PRIOR = 4.0
"""Layers that outweigh the assumption that one implementation is as far off as any other."""

_NORMAL_DISTANCE = 1.4826
"""The standard deviation of a normal distribution over the median distance from its middle."""

_LABEL_QUANTILE = 0.1
"""The quantile of a sample's repetitions that is learned; see :func:`labels_us`."""

_LEAST_SPREAD = 0.02
"""Relative spread of a sample's repetitions that every device may have."""

_UNCERTAIN_SPREAD = 2.0
"""A sample counts for less from this spread on, as a multiple of what is usual of the device."""


def labels_us(samples: Sequence[Sample]) -> np.ndarray:
    """What is learned of each sample: the lower decile of its repetitions.

    Other work on the machine only ever lengthens a repetition, and may spoil more than half of a point's, so that the
    median moves with it; the smallest alone would be luck. On a quiet device all three are the same. On two profiles of
    a bench device whose repetitions spread by 9 %, held-out halves are predicted to 18.7 and 20.3 % (CPU), 18.1 and
    19.1 % (GPU); medians would be to 19.4, 21.3, 19.3 and 20.9 %, and medians of what is within 10 % of the decile to
    19.3, 21.6, 18.7 and 19.6 %. On an H200 it is 9.8 % by deciles and 9.3 % by medians, on its CPU 19.8 and 19.7 %.
    """
    return np.array([np.quantile(sample.latency_us, _LABEL_QUANTILE) for sample in samples])


def newest(samples: Iterable[Sample]) -> list[Sample]:
    """Keep the newest sample of each half: it was measured again where the one before was uncertain."""
    found: dict[tuple[Any, ...], Sample] = {}
    for sample in samples:
        half = (sample.side, sample.layer, sample.variant, sample.units, sample.other_variant, sample.other_units)
        found[half] = sample
    return list(found.values())


def weights(samples: Sequence[Sample]) -> np.ndarray:
    """How much each sample counts: one whose repetitions disagree was measured while something else was going on."""
    spreads = [np.median(np.abs(np.array(sample.latency_us) / sample.median_us - 1)) for sample in samples]
    usual = max(float(np.median(spreads)), _LEAST_SPREAD)
    return 1 / (1 + (np.array(spreads) / (_UNCERTAIN_SPREAD * usual)) ** 2)


@dataclass(frozen=True)
class LatencyPredictor:
    """The time of any half on one side of one device."""

    side: str
    processor: Processor
    features: FeatureSet
    base: BaseTime
    usual_log_errors: Mapping[str, float]
    booster: xgboost.Booster
    residuals: Residuals = field(default_factory=Residuals)
    uncertainty: Uncertainty | None = None

    @property
    def implementations(self) -> tuple[str, ...]:
        """Families and implementations that the training samples held; of others nothing is known."""
        names = (name for name in self.features.names if name.startswith(IMPLEMENTATION_PREFIX))
        return tuple(name.removeprefix(IMPLEMENTATION_PREFIX) for name in names)

    @property
    def has_learned_threads(self) -> bool:
        """Whether the training samples held several numbers of the CPU's threads."""
        return set(THREAD_NAMES) <= set(self.features.names)

    def knows(self, layer: AnyLayer, variant: Variant) -> bool:
        """Tell whether the training samples held kernels like this one, or the predictor looks at no kernels."""
        return not self.implementations or implementation_feature(layer, variant) in self.features.names

    def predict(self, halves: Halves) -> np.ndarray:
        """Time in microseconds of each half."""
        for layer, variant in halves.kernels:
            if not self.knows(layer, variant):
                asked = implementation_feature(layer, variant).removeprefix(IMPLEMENTATION_PREFIX)
                raise MeasurementError(
                    f"the {self.side} predictor knows the kernels {', '.join(self.implementations)}, not {asked}; "
                    "tune this family of layers too"
                )
        described = describe(halves, self.side, self.processor)
        correction = self.booster.inplace_predict(self.features.matrix(described))
        usual = _usual(self.usual_log_errors, halves)
        known = _by_alone(self.residuals.factors, halves)
        return self.base.predict(described) * np.exp(usual + correction.astype(float)) * known

    def log_bounds(self, halves: Halves) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the factors on predicted times between which four of five measured ones are, a value a half.

        Both are 0 where nothing is known of the predictor's errors.
        """
        if self.uncertainty is None:
            return np.zeros(len(halves)), np.zeros(len(halves))
        lower, upper = self.uncertainty.log_bounds(self.features.matrix(describe(halves, self.side, self.processor)))
        left = _by_alone(self.residuals.uncertainty_factors, halves)
        return left * lower, left * upper

    def without_memory(self) -> LatencyPredictor:
        """The same, but for what it remembers of the very kernels that were measured."""
        return replace(self, residuals=Residuals())

    def save(self, path: Path) -> None:
        """Write XGBoost's own UBJ with everything else as an attribute, under a checksum."""
        import xgboost

        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "feature_version": FEATURE_VERSION,
            "side": self.side,
            "processor": asdict(self.processor),
            "base_us": dict(self.base.coefficients),
            "usual_log_errors": dict(self.usual_log_errors),
            "versions": {
                "tvm-coexec": __version__,
                "xgboost": xgboost.__version__,  # of the module: the distribution may be xgboost-cpu
                "numpy": np.__version__,
                "python": ".".join(map(str, sys.version_info[:3])),
            },
        }
        booster = self.booster.copy()
        booster.feature_names = list(self.features.names)
        booster.set_attr(
            **{
                _METADATA: json.dumps(metadata),
                _CHECKSUM: _NO_CHECKSUM.decode(),
                _RESIDUALS: json.dumps(self.residuals.to_json()),
                _UNCERTAINTY: json.dumps(self.uncertainty and self.uncertainty.to_json()),
            }
        )
        content = bytes(booster.save_raw("ubj"))
        digest = hashlib.sha256(content).hexdigest()
        with whole_file(path) as file:
            file.write(content.replace(_NO_CHECKSUM, b"sha256:" + digest.encode(), 1))

    @classmethod
    def load(cls, path: Path) -> LatencyPredictor:
        """Read and check; a :class:`FileFormatError` says what is wrong."""
        try:
            content = read_file(path)
        except OSError as error:
            raise FileFormatError(
                f"cannot read the predictor {path} ({error.strerror}); tune the profile again"
            ) from None
        _check_integrity(path, content)
        booster = _parse(path, content)
        metadata = json.loads(booster.attr(_METADATA) or "{}")
        expected = {"format": FORMAT, "format_version": FORMAT_VERSION, "feature_version": FEATURE_VERSION}
        for key, value in expected.items():
            if metadata.get(key) != value:
                raise FileFormatError(
                    f"{path} has {key.replace('_', ' ')} {metadata.get(key)!r}, this release needs {value!r}; "
                    "tune the profile again"
                )
        uncertainty = json.loads(booster.attr(_UNCERTAINTY) or "null")
        names = tuple(booster.feature_names or ())
        booster.feature_names = None
        return cls(
            side=metadata["side"],
            processor=Processor.from_json(metadata["processor"]),
            features=FeatureSet(names),
            base=BaseTime(tuple(metadata["base_us"].items())),
            usual_log_errors=metadata["usual_log_errors"],
            booster=booster,
            residuals=Residuals.from_json(json.loads(booster.attr(_RESIDUALS) or "")),
            uncertainty=Uncertainty.from_json(uncertainty) if uncertainty else None,
        )


def _check_integrity(path: Path, content: bytes) -> None:
    """A damaged file must not reach XGBoost's parser, which trusts the sizes and indices in it."""
    found = _CHECKSUM_PATTERN.search(content)
    if found is None:
        raise FileFormatError(f"{path} is no tvm-coexec predictor; tune the profile again")
    original = content.replace(found[0], _NO_CHECKSUM, 1)
    if hashlib.sha256(original).hexdigest() != found[1].decode():
        raise FileFormatError(f"{path} is damaged: its checksum does not match; tune the profile again")


def _parse(path: Path, content: bytes) -> xgboost.Booster:
    import xgboost

    booster = xgboost.Booster({"nthread": 1})
    try:
        booster.load_model(bytearray(content))
    except (xgboost.core.XGBoostError, ValueError) as error:
        reason = last_line(error)
        raise FileFormatError(
            f"XGBoost {xgboost.__version__} cannot read {path} ({reason}); tune the profile again or update xgboost"
        ) from None
    return booster


def train(
    samples: Sequence[Sample], side: str, processor: Processor, groups: Sequence[str] = GROUPS
) -> LatencyPredictor:
    """Learn the times of one side.

    Parameters
    ----------
    samples
        Samples of that side alone.
    processor
        The facts of the side's processor; they are stored with the predictor.
    groups
        Groups of features to use, see :data:`tvm_coexec.prediction.features.GROUPS`.
    """
    import xgboost

    if not samples:
        raise MeasurementError(f"the profile holds no samples of the {side} side; run `tvm-coexec tune` first")
    halves, latency_us = Halves.of(samples), labels_us(samples)
    described = describe(halves, side, processor)
    terms = LAYER_TERMS + (KERNEL_TERMS + PRODUCT_TERMS if "dispatch" in groups else ())
    if "dispatch" in groups and halves.by_several_threads:
        terms += THREAD_TERMS
    counts = weights(samples)
    base = BaseTime.fit(described, latency_us, counts, terms)
    features = FeatureSet.for_halves(halves, groups)
    log_errors = np.log(latency_us / base.predict(described))
    usual = _usual_by_implementation(samples, log_errors, counts) if "kernel" in groups else {}
    log_errors -= _usual(usual, halves)
    data = xgboost.DMatrix(features.matrix(described), _without_outliers(log_errors), weight=counts, nthread=1)
    depth = _DEPTHS[len(samples) >= _MANY_SAMPLES]
    booster = xgboost.train({**_PARAMETERS, "max_depth": depth}, data, _ROUNDS)
    left = log_errors - booster.predict(data)
    residuals = Residuals.of(samples, left, counts).telling_alone(samples, left, counts)
    return LatencyPredictor(side, processor, features, base, usual, booster, residuals)


def _by_alone(of_kernels: Callable[..., np.ndarray], halves: Halves) -> np.ndarray:
    """Look each half up by its kernel, and by whether the other side is idle."""
    table = np.stack([of_kernels(halves.kernels, alone=alone) for alone in (False, True)])
    return table[(halves.other_units == 0).astype(int), halves.kernel]


def _usual_by_implementation(samples: Sequence[Sample], log_errors: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """How far the base time is off for each implementation: the median, drawn towards none where layers are few."""
    names = np.array([implementation_feature(sample.layer, sample.variant) for sample in samples])
    usual = {}
    for name in dict.fromkeys(names.tolist()):
        own = names == name
        layers = len({sample.layer for sample, is_own in zip(samples, own, strict=True) if is_own})
        usual[name] = weighted_median(log_errors[own], counts[own]) * layers / (layers + _IMPLEMENTATION_PRIOR)
    return usual


def _usual(usual_log_errors: Mapping[str, float], halves: Halves) -> np.ndarray:
    kernels = [usual_log_errors.get(implementation_feature(layer, variant), 0.0) for layer, variant in halves.kernels]
    return np.array(kernels)[halves.kernel]


def _without_outliers(log_errors: np.ndarray) -> np.ndarray:
    limit = _OUTLIERS * _NORMAL_DISTANCE * float(np.median(np.abs(log_errors)))
    return np.clip(log_errors, -limit, limit)


def weighted_median(values: np.ndarray, counts: np.ndarray) -> float:
    """The value that half of what counts lies below."""
    order = np.argsort(values)
    passed = np.cumsum(counts[order])
    return float(values[order][np.searchsorted(passed, passed[-1] / 2)])
