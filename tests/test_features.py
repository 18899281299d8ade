import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_device import HARDWARE, PROCESSOR, variants

from tvm_coexec.errors import FileFormatError
from tvm_coexec.layers import Concat, Conv2d, Elementwise, Linear, LocalNorm, Pool, RowWise, Variant
from tvm_coexec.prediction.features import GROUPS, FeatureSet, Halves, Processor, describe
from tvm_coexec.profile.records import Sample
from tvm_coexec.schedules import conv2d, family

GPU_VARIANT = Variant.make("direct", rows=4, lanes=4, channel_threads=8, row_threads=8, k_split=1, order=0, unroll=1)

linear_layers = st.builds(
    Linear,
    m=st.integers(1, 300),
    k=st.integers(1, 500),
    n=st.integers(33, 500),
    epilogue=st.sampled_from([(), ("bias",), ("bias", "residual", "relu")]),
)


def test_halves_of_one_layer_are_described_by_hand_checked_numbers():
    layer = Linear(50, 768, 100, ("bias", "gelu"))
    halves = Halves.grid(layer, [GPU_VARIANT], np.array([3]), np.array([1]))
    described = describe(halves, "gpu", Processor(workers=4))
    expected = {
        "rows": 50,
        "reduction": 768,
        "channels": 100,
        "flops": 2 * 50 * 768 * 100 * 3 / 4,
        "weight_bytes": 4 * 768 * 100 * 3 / 4,
        "activation_bytes": 4 * 50 * (768 + 75),
        "epilogue:gelu": 1,
        "kind:linear": 1,
        "group_size": 64,
        "groups": 6,
        "work_items": 384,
        "waves": 2,
        "last_wave_fill": 0.5,
        "row_padding": 64 / 50,
        "channel_padding": 1.28,
        "padded_flops": 2 * 64 * 768 * 96,
        "accumulators": 16,
        "steps_per_item": 768,
        "co_run": 1,
        "other_share": 0.25,
        "combined_bytes": 4 * (768 * 100 + 50 * (768 + 100)),
    }
    assert {name: float(described[name][0]) for name in expected} == pytest.approx(expected)


@given(linear_layers, st.sampled_from(["cpu", "gpu"]), st.data())
def test_a_grid_describes_what_its_halves_one_by_one_do(layer, side, data):
    candidates = variants(layer, side)[:3]
    units = np.array(data.draw(st.lists(st.integers(1, layer.units), min_size=1, max_size=4)))
    other = layer.units - units
    grid = Halves.grid(layer, candidates, units, other)
    singles = [
        Sample(layer, side, variant, int(own), int(meanwhile), (1.0,))
        for variant in candidates
        for own, meanwhile in zip(units, other, strict=True)
    ]
    features = FeatureSet.for_halves(grid)
    together = features.matrix(describe(grid, side, PROCESSOR))
    apart = [features.matrix(describe(Halves.of([single]), side, PROCESSOR)) for single in singles]
    np.testing.assert_array_equal(together, np.concatenate(apart))
    assert np.isfinite(together).all()


@given(linear_layers, st.sampled_from(["cpu", "gpu"]))
def test_work_grows_with_the_units_and_halves_add_up_to_the_layer(layer, side):
    units = np.arange(1, layer.units)
    described = describe(Halves.grid(layer, variants(layer, side)[:1], units, layer.units - units), side, PROCESSOR)
    for name in ("flops", "weight_bytes", "activation_bytes", "groups", "padded_flops", "waves"):
        assert (np.diff(described[name]) >= 0).all(), name
    np.testing.assert_allclose(described["flops"] + described["flops"][::-1], layer.flops)
    assert (described["padded_flops"] >= described["flops"] * (1 - 1e-12)).all()
    assert ((described["last_wave_fill"] > 0) & (described["last_wave_fill"] <= 1)).all()


def test_a_half_alone_has_no_contention():
    layer = Linear(8, 64, 128)
    described = describe(Halves.grid(layer, [GPU_VARIANT], np.array([4]), np.array([0])), "gpu", PROCESSOR)
    assert described["co_run"] == described["other_units"] == described["other_share"] == 0


def test_groups_of_features_can_be_left_out():
    halves = Halves.grid(Linear(8, 64, 128), [GPU_VARIANT], np.array([4]), np.array([0]))
    everything = FeatureSet.for_halves(halves).names
    without = FeatureSet.for_halves(halves, ("layer", "contention")).names
    assert set(without) < set(everything)
    assert "flops" in without
    assert {"groups", "param:rows", "implementation:linear direct"} <= set(everything) - set(without)
    by_group = [FeatureSet.for_halves(halves, (group,)).names for group in GROUPS]
    assert sum(by_group, ()) == everything


def test_a_variant_changes_kernel_and_dispatch_features_alone():
    layer = Linear(50, 768, 96)
    other = Variant.make("direct", **dict(GPU_VARIANT.params) | {"rows": 2})
    halves = Halves.grid(layer, [GPU_VARIANT, other], np.array([2]), np.array([1]))
    features = FeatureSet.for_halves(halves)
    first, second = features.matrix(describe(halves, "gpu", PROCESSOR))
    changed = {name for name, a, b in zip(features.names, first, second, strict=True) if a != b}
    assert "param:rows" in changed
    assert not changed & set(FeatureSet.for_halves(halves, ("layer", "contention")).names)


def test_convolutions_are_described_by_hand_checked_numbers():
    layer = Conv2d(14, 14, 24, 72, 3, 2, 1, groups=3, epilogue=("bias", "relu"))
    variant = Variant.make("direct", rows=7, channels=32, k_split=1, order=0, unroll=1, skip=0)
    described = describe(Halves.grid(layer, [variant], np.array([2]), np.array([1])), "cpu", PROCESSOR)
    expected = {
        "rows": 49,
        "reduction": 72,
        "kernel_height": 3,
        "stride": 2,
        "group_channels": 8,
        "output_width": 7,
        "kind:conv2d": 1,
        "flops": 2 * 49 * 72 * 72 * 2 / 3,
        "activation_bytes": 4 * (14 * 14 * 24 + 49 * 72) * 2 / 3,
        "groups": 14,
        "row_padding": 1,
        "extra_terms": 2,  # a tile of 32 channels lies in two groups of 24
        "padded_flops": 2 * 49 * 144 * 64,
        "accumulators": 7 * 32,
        "steps_per_item": 144,
    }
    assert {name: float(described[name][0]) for name in expected} == pytest.approx(expected)


def test_by_lines_a_half_reads_all_weights_and_its_own_part_of_the_input():
    layer = Conv2d(28, 28, 24, 72, 3, 1, 1, axis="lines")
    variant = Variant.make("direct", rows=7, channels=32, k_split=1, order=0, unroll=1, skip=0)
    described = describe(Halves.grid(layer, [variant], np.array([6]), np.array([8])), "cpu", PROCESSOR)
    pixels = 6 / 14 * 28 * 28
    expected = {
        "by_lines": 1,
        "implementation:conv2d direct by lines": 1,
        "units": 6,
        "flops": 2 * pixels * 72 * 9 * 24,
        "weight_bytes": layer.weight_bytes,
        "activation_bytes": 4 * pixels * (24 + 72),
        "combined_bytes": layer.weight_bytes + layer.activation_bytes,
        "groups": pixels / 7 * 3,
        "channel_padding": 96 / 72,
        "row_padding": 1,
        "steps_per_item": 9 * 24,
    }
    assert {name: float(described[name][0]) for name in expected} == pytest.approx(expected)
    assert "implementation:conv2d direct" not in described


def test_winograd_is_described_by_fewer_products():
    layer = Conv2d(16, 16, 64, 64, 3, 1, 1)
    products: dict[int | None, float] = {}
    for variant in conv2d.variants(layer, "cpu", HARDWARE):
        half = Halves.grid(layer, [variant], np.array([2]), np.array([0]))
        padded = describe(half, "cpu", PROCESSOR)["padded_flops"][0] / layer.flops
        products.setdefault(dict(variant.params).get("m"), padded)
    assert products[None] == 1
    assert products[2] == pytest.approx(4 / 9, rel=0.2)
    assert products[4] == pytest.approx(1 / 4, rel=0.2)


def test_pooling_is_described_by_hand_checked_numbers():
    layer = Pool("max", 14, 14, 72, (3, 2), (2, 2), (1, 0, 1, 0), epilogue=("residual",))
    variant = Variant.make("images", rows=7, channels=32, k_split=1, order=0, unroll=1)
    described = describe(Halves.grid(layer, [variant], np.array([2]), np.array([1])), "cpu", PROCESSOR)
    expected = {
        "rows": 49,
        "reduction": 6,
        "kernel_height": 3,
        "kernel_width": 2,
        "stride": 2,
        "kind:max_pool": 1,
        "inputs": 1,
        "activation_bytes": 4 * 72 * (14 * 14 + 2 * 49) * 2 / 3,
        "groups": 14,
        "accumulators": 7 * 32,
    }
    assert {name: float(described[name][0]) for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    "layer",
    [Concat(4, 5, (16, 48)), Elementwise("add", (1, 4, 4, 70), (1, 4, 4, 1)), LocalNorm(4, 4, 70, 5, 1.0, 0.75, 1.0)],
)
@pytest.mark.parametrize("side", ["cpu", "gpu"])
def test_layers_of_images_have_finite_features(layer, side):
    halves = Halves.grid(layer, family(layer).variants(layer, side, HARDWARE), np.array([1]), np.array([1]))
    features = FeatureSet.for_halves(halves)
    matrix = features.matrix(describe(halves, side, PROCESSOR))
    assert np.isfinite(matrix).all()
    assert (matrix[:, features.names.index(f"kind:{layer.op}")] == 1).all()
    assert (matrix[:, features.names.index("inputs")] == len(layer.input_sizes)).all()


def test_row_wise_operators_have_features_too():
    layer = RowWise("layer_norm", 197, 768, ("residual",))
    variant = family(layer).default_variant(layer, "cpu", HARDWARE)
    halves = Halves.grid(layer, [variant], np.array([10]), np.array([15]))
    features = FeatureSet.for_halves(halves)
    values = dict(zip(features.names, features.matrix(describe(halves, "cpu", PROCESSOR))[0], strict=True))
    assert values["kind:layer_norm"] == values["implementation:rowwise rows"] == values["epilogue:residual"] == 1
    assert values["kind:linear"] == 0


def test_a_feature_of_another_release_is_named():
    with pytest.raises(FileFormatError, match=r"'phase_of_moon'.*tune the profile again"):
        FeatureSet(("flops", "phase_of_moon"))
