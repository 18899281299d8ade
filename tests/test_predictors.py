import json
from dataclasses import replace

import numpy as np
import pytest
from slow import slow_except
from synthetic_device import HARDWARE, PROCESSOR, latency_us, measure, some_layers, trained, variants

from tvm_coexec.errors import FileFormatError, MeasurementError
from tvm_coexec.layers import Conv2d, Elementwise, Linear, RowWise, Variant, along_partition_axes
from tvm_coexec.prediction import predictors
from tvm_coexec.prediction.base_time import LAYER_TERMS, BaseTime
from tvm_coexec.prediction.evaluation import (
    FLOPS_REGRESSION,
    FULL,
    WITHOUT_KERNEL,
    Score,
    evaluate,
    format_table,
    noise_percent,
)
from tvm_coexec.prediction.features import Halves
from tvm_coexec.prediction.predictors import LatencyPredictor, newest, train
from tvm_coexec.profile.records import Sample
from tvm_coexec.schedules import family

LAYER = Linear(197, 768, 3072)


def splits_of(layer, side):
    units = np.arange(1, layer.units)
    return Halves.grid(layer, variants(layer, side)[:3], units, layer.units - units)


@pytest.mark.slow
@pytest.mark.parametrize("side", slow_except(["cpu", "gpu"], 0))
def test_unseen_shapes_are_predicted_well_and_only_with_kernel_features(side):
    evaluation = evaluate(measure(some_layers(40, seed=3), side), side, PROCESSOR)
    scores = evaluation.scores
    assert scores[FULL].mape_percent < 8
    assert scores[FULL].within_10_percent > 70
    assert scores[WITHOUT_KERNEL].mape_percent > 1.5 * scores[FULL].mape_percent
    assert scores[FLOPS_REGRESSION].mape_percent > 1.5 * scores[FULL].mape_percent
    assert evaluation.shapes == 40
    assert 0.3 < evaluation.noise_percent < 1.5


@pytest.mark.slow
def test_evaluations_are_printed_and_stored():
    evaluation = evaluate(measure(some_layers(3, seed=3), "cpu"), "cpu", PROCESSOR)
    stored = json.loads(json.dumps(evaluation.to_json()))
    assert stored["scores"][FULL]["mape_percent"] == evaluation.scores[FULL].mape_percent
    table = format_table([evaluation])
    assert f"{evaluation.scores[FULL].mape_percent:.1f} %" in table
    assert f"{evaluation.samples} samples of 3 shapes" in table


def test_kernels_of_a_single_shape_are_not_held_out():
    samples = []
    for layer in (Conv2d(28, 28, 64, 64, 1), Conv2d(28, 28, 96, 64, 1, axis="lines")):
        variant = family(layer).default_variant(layer, "cpu", HARDWARE)
        samples += [Sample(layer, "cpu", variant, units, 0, (float(units),) * 3) for units in (1, layer.units)]
    with pytest.raises(MeasurementError, match="two shapes of one kind of layer"):
        evaluate(samples, "cpu", PROCESSOR)


def test_an_epilogue_does_not_make_a_shape_a_new_one():
    layers = [Linear(8, 64, 64), Linear(8, 64, 64, ("bias",)), Linear(8, 64, 64, ("relu",))]
    with pytest.raises(MeasurementError, match="two shapes of one kind of layer"):
        evaluate(measure(layers, "cpu"), "cpu", PROCESSOR)


def test_neither_does_the_axis_along_which_it_is_divided():
    variant = Variant.make("direct", rows=7, channels=32, k_split=1, order=0, unroll=1, skip=0)
    ways = along_partition_axes(Conv2d(28, 28, 8, 64, 1))
    assert len(ways) == 2
    samples = [Sample(way, "cpu", variant, 2, 0, (10.0,)) for way in ways]
    with pytest.raises(MeasurementError, match="two shapes of one kind of layer"):
        evaluate(samples, "cpu", PROCESSOR)


def test_arithmetic_divided_along_either_axis_is_one_shape():
    sums = [Elementwise("add", size, size) for size in ((1, 28, 28, 64), (1, 14, 14, 128))]
    layers = [way for layer in sums for way in along_partition_axes(layer)]
    samples = []
    for layer in layers:
        for variant in family(layer).variants(layer, "cpu", HARDWARE)[:2]:
            units = range(1, min(layer.units, 8) + 1)
            samples += [Sample(layer, "cpu", variant, count, 0, (5.0 + count,) * 3) for count in units]
    assert (len(layers), evaluate(samples, "cpu", PROCESSOR).shapes) == (4, 2)


def test_scores_are_relative_errors():
    assert Score.of(np.array([125.0, 75.0, 96.875, 100.0]), np.full(4, 100.0)) == Score(13.28125, 50.0)


def test_noise_is_the_typical_spread_of_the_repetitions():
    variant = variants(LAYER, "cpu")[0]
    samples = [Sample(LAYER, "cpu", variant, 1, 0, times) for times in ((90.0, 100.0, 110.0), (100.0,), (50.0, 150.0))]
    assert noise_percent(samples) == pytest.approx(20 / 3)


def test_a_spoilt_repetition_does_not_change_what_is_learned():
    clean = measure(some_layers(5, seed=3), "cpu", noise=0.0)
    spoilt = [Sample(s.layer, s.side, s.variant, s.units, s.other_units, (*s.latency_us[1:], 1e6)) for s in clean]
    halves = splits_of(LAYER, "cpu")
    np.testing.assert_array_equal(
        train(clean, "cpu", PROCESSOR).predict(halves), train(spoilt, "cpu", PROCESSOR).predict(halves)
    )


@pytest.mark.parametrize("side", ["cpu", "gpu"])
def test_predictions_follow_the_units_and_reach_beyond_the_samples(side):
    larger = Linear(1024, 4096, 8192)
    for layer, tolerance in ((LAYER, 0.25), (larger, 0.35)):
        halves = Halves.grid(layer, variants(layer, side)[:1], np.array([8, 16, 32, 64]), np.zeros(4))
        predicted_us = trained(side).predict(halves)
        true_us = [latency_us(layer, side, variants(layer, side)[0], units, 0) for units in (8, 16, 32, 64)]
        assert (np.diff(predicted_us) > 0).all()
        np.testing.assert_allclose(predicted_us, true_us, rtol=tolerance)


def test_a_saved_predictor_predicts_the_same(tmp_path):
    path = tmp_path / "gpu.ubj"
    trained("gpu").save(path)
    loaded = LatencyPredictor.load(path)
    halves = splits_of(LAYER, "gpu")
    np.testing.assert_array_equal(loaded.predict(halves), trained("gpu").predict(halves))
    np.testing.assert_array_equal(loaded.log_bounds(halves), trained("gpu").log_bounds(halves))
    assert (loaded.side, loaded.processor, loaded.features) == ("gpu", PROCESSOR, trained("gpu").features)
    assert loaded.implementations == ("linear direct",)
    loaded.save(tmp_path / "again.ubj")
    assert (tmp_path / "again.ubj").read_bytes() == path.read_bytes()


def test_the_file_is_xgboosts_own(tmp_path):
    import xgboost

    path = tmp_path / "cpu.ubj"
    trained("cpu").save(path)
    booster = xgboost.Booster(model_file=path)
    assert booster.feature_names == list(trained("cpu").features.names)
    metadata = json.loads(booster.attr("tvm_coexec"))
    assert metadata["versions"]["xgboost"] == xgboost.__version__
    assert metadata["feature_version"] == predictors.FEATURE_VERSION


@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_flipped_bit_is_noticed(tmp_path, place):
    path = tmp_path / "cpu.ubj"
    trained("cpu").save(path)
    content = bytearray(path.read_bytes())
    content[round(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"damaged.*tune the profile again"):
        LatencyPredictor.load(path)


@pytest.mark.parametrize("length", [3000, 100_000])
def test_a_file_that_is_cut_off_is_noticed(tmp_path, length):
    path = tmp_path / "cpu.ubj"
    trained("cpu").save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileFormatError, match="is damaged"):
        LatencyPredictor.load(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"sha256:"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "cpu.ubj"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="no tvm-coexec predictor"):
        LatencyPredictor.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileFormatError, match=r"gone\.ubj.*No such file"):
        LatencyPredictor.load(tmp_path / "gone.ubj")


@pytest.mark.parametrize(
    "constant, what", [("FEATURE_VERSION", "feature version"), ("FORMAT_VERSION", "format version")]
)
def test_a_file_of_another_version_is_refused(tmp_path, monkeypatch, constant, what):
    path = tmp_path / "cpu.ubj"
    trained("cpu").save(path)
    kept = getattr(predictors, constant)
    monkeypatch.setattr(predictors, constant, 99)
    with pytest.raises(FileFormatError, match=f"{what} {kept}, this release needs 99"):
        LatencyPredictor.load(path)


def test_kernels_that_were_never_measured_are_refused():
    layer = RowWise("softmax", 197, 768)
    variant = family(layer).default_variant(layer, "cpu", HARDWARE)
    with pytest.raises(MeasurementError, match="knows the kernels linear direct, not rowwise rows"):
        trained("cpu").predict(Halves.grid(layer, [variant], np.array([4]), np.array([0])))


def test_training_needs_samples():
    with pytest.raises(MeasurementError, match="no samples of the gpu side"):
        train([], "gpu", PROCESSOR)


def test_the_base_time_recovers_a_sum_of_costs():
    rng = np.random.default_rng(0)
    described = {name: rng.uniform(1, 100, 300) for name in LAYER_TERMS}
    times_us = 3 + 2 * described["flops"] + 0.5 * described["weight_bytes"]
    base = BaseTime.fit(described, times_us, np.ones(300), LAYER_TERMS)
    np.testing.assert_allclose(base.predict(described), times_us, rtol=0.02)
    assert all(value >= 0 for _, value in base.coefficients)


def test_of_the_same_half_the_newest_sample_counts():
    first, other, *_ = measure(some_layers(2, seed=3), "cpu")
    disturbed = replace(first, latency_us=tuple(2 * us for us in first.latency_us))
    assert newest([disturbed, other, first]) == [first, other]
    assert newest([first, other, disturbed]) == [disturbed, other]


def test_a_predictor_comes_closer_to_what_it_was_trained_with_by_remembering_it():
    samples = measure(some_layers(10, seed=3), "cpu")
    odd = samples[0].layer
    samples = [replace(s, latency_us=tuple(1.5 * us for us in s.latency_us)) if s.layer == odd else s for s in samples]
    predictor = train(samples, "cpu", PROCESSOR)
    own = [sample for sample in samples if sample.layer == odd]
    measured_us = predictors.labels_us(own)

    def error(one: LatencyPredictor) -> float:
        return float(np.abs(one.predict(Halves.of(own)) / measured_us - 1).mean())

    assert error(predictor) < 0.5 * error(predictor.without_memory())
