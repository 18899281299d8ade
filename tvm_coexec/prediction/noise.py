"""How much longer halves take on average than undisturbed, which is what the predictors learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvm_coexec.profile.records import Sample

from .predictors import labels_us

_SIDES = ("cpu", "gpu")


@dataclass(frozen=True)
class Noise:
    """Factors on the times of halves, by side: while the other side idles, and while it works as well.

    Splits are compared by undisturbed times. But the time of a run is the sum of many halves' times, and its median
    is near the sum of their means: other work lengthens some halves in every run.
    """

    alone: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(_SIDES, 1.0))
    concurrent: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(_SIDES, 1.0))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Noise:
        return cls(*({side: float(fields[when][side]) for side in _SIDES} for when in ("alone", "concurrent")))

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Noise:
        """The mean of the repetitions over what is learned of them, of the median sample; 1 where there is none."""
        ratios: dict[tuple[str, bool], list[float]] = {}
        chosen = list(samples)
        for sample, label_us in zip(chosen, labels_us(chosen), strict=True):
            ratios.setdefault((sample.side, sample.other_units > 0), []).append(np.mean(sample.latency_us) / label_us)
        found = {key: float(np.median(values)) for key, values in ratios.items()}
        return cls(*({side: found.get((side, concurrent), 1.0) for side in _SIDES} for concurrent in (False, True)))

    def factors(self, *, is_split: bool) -> Mapping[str, float]:
        """Tell how much longer each side's half of a layer takes on average, alone or concurrent with the other's."""
        return self.concurrent if is_split else self.alone
