"""Guided search: every way is tried, then what the predictors expect to be better, and what is uncertain once more."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_tuning import FakeSession, tuner

from tvm_coexec.layers import Conv2d, Variant
from tvm_coexec.prediction.features import Halves
from tvm_coexec.profile.records import Candidate
from tvm_coexec.rpc.outcomes import RefusedError
from tvm_coexec.tuning.guided import first_candidates, search_variants
from tvm_coexec.tuning.tuner import Tuner, training_points

LAYER = Conv2d(14, 14, 64, 64, (3, 3), padding=(1, 1, 1, 1))


class FakePredictor:
    """Expects every variant to take 100 us, but for those that it is told of, for some by what it remembers."""

    def __init__(self, expected_us: Mapping[Variant, float], residuals: Mapping[Variant, float] | None = None) -> None:
        self.expected_us, self.residuals = expected_us, residuals or {}

    def without_memory(self) -> "FakePredictor":
        return FakePredictor(self.expected_us)

    def knows(self, layer: Any, variant: Variant) -> bool:
        return True

    def predict(self, halves: Halves) -> np.ndarray:
        known_us = {**self.expected_us, **self.residuals}
        times_us = np.array([known_us.get(variant, 100.0) for _, variant in halves.kernels])
        return times_us[halves.kernel]


def search(one: Tuner, expected_us: Mapping[Variant, float], *, is_over: bool = False) -> set[Variant]:
    """The CPU's variants that a search measures of the layer, after its default."""
    one.measure(one.default_candidate(LAYER), training_points(LAYER))
    predictors: Any = {"cpu": FakePredictor(expected_us), "gpu": FakePredictor({one.default_candidate(LAYER).gpu: 1.0})}
    search_variants(one, [LAYER], lambda: predictors, lambda: is_over)
    return set(one.profile.measured_variants()["cpu", LAYER]) - {one.default_candidate(LAYER).cpu}


def test_every_implementation_is_tried_first(tmp_path: Path) -> None:
    one = tuner(FakeSession(), tmp_path / "p")
    candidates = first_candidates(one, LAYER)
    assert len(candidates) == len(set(candidates)) > 1
    for side, chosen in (("cpu", [c.cpu for c in candidates]), ("gpu", [c.gpu for c in candidates])):
        able = {variant.implementation for variant in one.variants(LAYER, side)}
        assert {variant.implementation for variant in chosen} == able


@pytest.mark.slow
def test_what_promises_to_be_faster_is_measured_and_nothing_else(tmp_path: Path) -> None:
    one = tuner(FakeSession(), tmp_path / "p")
    default, *others = one.variants(LAYER, "cpu")
    promising = {others[0]: 50.0, others[1]: 54.0, others[2]: 70.0}
    assert search(one, {default: 60.0, **promising}) == {others[0], others[1]}


def test_a_search_ends_where_nothing_is_promising(tmp_path: Path) -> None:
    one = tuner(FakeSession(), tmp_path / "p")
    assert search(one, {one.default_candidate(LAYER).cpu: 10.0}) == set()


def test_a_variant_that_fails_does_not_keep_others_from_being_measured(tmp_path: Path) -> None:
    one = tuner(FakeSession(), tmp_path / "p")
    default, bad, good, *_ = one.variants(LAYER, "cpu")
    measure = one.session.measure

    def fail(module: bytes, points: Any, **options: Any) -> Any:
        if module == one.module(Candidate(LAYER, bad, one.default_candidate(LAYER).gpu)):
            raise RefusedError("the result is wrong")
        return measure(module, points, **options)

    one.session.measure = fail  # type: ignore[method-assign]
    assert search(one, {default: 60.0, bad: 50.0, good: 54.0}) == {good}


def test_nothing_is_searched_where_nothing_could_be_measured(tmp_path: Path) -> None:
    one = tuner(FakeSession(refuses=True), tmp_path / "p")
    for candidate in first_candidates(one, LAYER):
        one.measure(candidate, training_points(LAYER))
    search_variants(one, [LAYER], lambda: pytest.fail("there is nothing to learn from"), lambda: False)


def test_a_search_ends_when_its_time_is_over(tmp_path: Path) -> None:
    one = tuner(FakeSession(), tmp_path / "p")
    assert search(one, {}, is_over=True) == set()


def test_what_took_much_longer_than_predicted_is_measured_once_more(tmp_path: Path) -> None:
    one = tuner(FakeSession(), tmp_path / "p")
    default, slow, *_ = one.variants(LAYER, "cpu")
    gpu = one.default_candidate(LAYER).gpu
    for variant in (default, slow):
        one.measure(Candidate(LAYER, variant, gpu), training_points(LAYER))
    predictors: Any = {
        "cpu": FakePredictor({default: 60.0, slow: 50.0}, {slow: 90.0}),
        "gpu": FakePredictor({gpu: 1.0}),
    }
    before = Counter(sample.variant for sample in one.profile.samples())
    search_variants(one, [LAYER], lambda: predictors, lambda: False)
    after = Counter(sample.variant for sample in one.profile.samples())
    assert after[slow] - before[slow] == before[slow]
    assert after[default] == before[default]
