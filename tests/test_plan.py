import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_coexec.errors import FileFormatError
from tvm_coexec.layers import Conv2d, Linear, RowWise, Variant
from tvm_coexec.planning.plan import LayerPlan, Plan, Sync

VARIANT = Variant.make("direct", rows=4, unroll=1)
PLAN = Plan(
    device="pocl: cpu",
    mechanism="svm",
    layers=(
        LayerPlan("fc1", Linear(8, 64, 128, ("bias",)), 1, VARIANT, VARIANT, 10.0, 12.0, 15.5, "split: because"),
        LayerPlan("norm", RowWise("layer_norm", 8, 64, epsilon=1e-5), 1, VARIANT, None, 3.0, 0.0, 3.0, "cpu alone"),
    ),
    total_us=17.5,
    syncs=(Sync("norm", "cpu", "fc1", "reads it all"), Sync(None, "cpu", "fc1", "the end")),
)

sizes = st.integers(1, 5000)
times_us = st.floats(0, 1e9)
intervals = st.tuples(times_us, times_us).map(sorted).map(tuple)
variants = st.builds(
    lambda implementation, params: Variant.make(implementation, **params),
    st.text(min_size=1),
    st.dictionaries(st.sampled_from(["rows", "lanes", "order", "unroll"]), st.integers(0, 64)),
)
layers = st.one_of(
    st.builds(Linear, sizes, sizes, sizes, st.sampled_from([(), ("bias", "relu")])),
    st.builds(RowWise, st.sampled_from(RowWise.KINDS), sizes, sizes, epsilon=st.floats(0, 1)),
)


@st.composite
def layer_plans(draw):
    layer = draw(layers)
    cpu_units = draw(st.integers(0, layer.units))
    cpu = draw(variants) if cpu_units else None
    gpu = draw(variants) if cpu_units < layer.units else None
    times = [draw(times_us) for _ in range(3)]
    return LayerPlan(
        draw(st.text()), layer, cpu_units, cpu, gpu, *times, draw(st.text()), draw(intervals), draw(intervals)
    )


@st.composite
def plans(draw):
    layers = tuple(draw(st.lists(layer_plans(), min_size=1, max_size=3)))
    names = st.sampled_from([layer.name for layer in layers])
    syncs = st.builds(Sync, names | st.none(), st.sampled_from(["cpu", "gpu"]), names, st.text())
    more = tuple(draw(st.lists(syncs, max_size=3)))
    return Plan(draw(st.text()), draw(st.text()), layers, draw(times_us), more, draw(st.booleans()), draw(intervals))


@given(plans())
def test_a_plan_survives_json(plan):
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_survives_its_file_and_the_file_is_readable(tmp_path):
    path = tmp_path / "plan.json"
    PLAN.write(path)
    assert Plan.read(path) == PLAN
    assert '"cpu_units": 1,' in path.read_text()
    assert '"implementation": "direct",' in path.read_text()


def test_the_table_names_layers_splits_times_and_reasons():
    table = str(PLAN).splitlines()
    assert table[0] == "device pocl: cpu, synchronised by svm"
    assert table[2].split() == ["fc1", "1", "3", "channels", "10.0", "12.0", "15.5", "split:", "because"]
    assert table[3].split() == ["norm", "1", "0", "rows", "3.0", "0.0", "3.0", "cpu", "alone"]
    assert table[4:6] == ["2 layers, expected 17.5 us", "2 synchronisations"]
    assert table[7].split() == ["norm", "CPU", "fc1", "reads", "it", "all"]
    assert table[8].split() == ["the", "end", "CPU", "fc1", "the", "end"]


def test_the_table_says_so_where_nobody_waits():
    assert str(dataclasses.replace(PLAN, syncs=())).splitlines()[-1] == "no synchronisations"


def changed(place, value):
    values = PLAN.to_json()
    target = values
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    return values


@pytest.mark.parametrize(
    "place, value, message",
    [
        (["format"], "a recipe", "no tvm-coexec plan"),
        (["version"], 1, "version 1, this release reads 6"),
        (["colour"], "red", "a plan has the unknown field 'colour'"),
        (["device"], None, "'device' is None"),
        (["total_us"], -1, "'total_us' is -1"),
        (["syncs"], None, "'syncs' is None"),
        (["syncs", 0], "fc1", "a synchronisation is not an object"),
        (["syncs", 0, "side"], "dsp", "side 'dsp' of a synchronisation"),
        (["syncs", 0, "awaits"], "fc9", "names the layer 'fc9'"),
        (["syncs", 1, "layer"], 3, "'layer' is 3"),
        (["layers"], {}, "'layers' is {}"),
        (["layers", 0], 7, "a layer is not an object"),
        (["layers", 0, "hue"], 1, "a layer has the unknown field 'hue'"),
        (["layers", 0, "units"], 5, "has 4 units, not 5"),
        (["layers", 0, "cpu_units"], 9, "has 4 units, the CPU cannot compute 9"),
        (["layers", 0, "cpu_units"], True, "'cpu_units' is True"),
        (["layers", 0, "cpu_units"], 1.5, "'cpu_units' is 1.5"),
        (["layers", 0, "gpu"], None, "the gpu side has 3 units and the variant None"),
        (["layers", 1, "gpu"], {"implementation": "direct"}, "the gpu side has 0 units and the variant direct"),
        (["layers", 0, "cpu"], {"rows": 4}, "damaged"),
        (["layers", 0, "cpu", "implementation"], 3, "3 is no kernel's implementation"),
        (["layers", 0, "cpu", "rows"], -1, "whole numbers from 0 to 2147483647"),
        (["layers", 0, "cpu", "rows"], 10**30, "whole numbers from 0 to 2147483647"),
        (["layers", 0, "cpu_us"], -1.0, "'cpu_us' is -1.0"),
        (["layers", 0, "cpu_us"], float("nan"), "'cpu_us' is nan"),
        (["layers", 0, "layer", "op"], "sponge", "unknown layer op 'sponge'"),
        (["layers", 0, "layer", "m"], 0, "must be at least 1"),
    ],
)
def test_a_damaged_plan_says_what_is_wrong(place, value, message):
    with pytest.raises(FileFormatError, match=message):
        Plan.from_json(changed(place, value))


def test_a_missing_field_is_named():
    values = PLAN.to_json()
    del values["layers"][0]["reason"]
    with pytest.raises(FileFormatError, match="a layer lacks 'reason'"):
        Plan.from_json(values)


@pytest.mark.parametrize("content, message", [("{", r"is no JSON file"), ("[]", "no tvm-coexec plan"), ("\0", "JSON")])
def test_a_damaged_file_is_named(tmp_path, content, message):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(FileFormatError, match=rf"plan\.json.*{message}"):
        Plan.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileFormatError, match=r"gone\.json.*No such file"):
        Plan.read(tmp_path / "gone.json")


def test_a_layer_plan_must_fit_its_layer():
    with pytest.raises(ValueError, match="'fc' has 4 units, the CPU cannot compute 5"):
        LayerPlan("fc", Linear(8, 64, 128), 5, VARIANT, None, 0.0, 0.0, 0.0, "")


def test_a_plan_tells_where_special_numbers_spread():
    conv = Conv2d(8, 8, 64, 64, (3, 3), padding=(1, 1, 1, 1))
    winograd = Variant.make("winograd", m=4)
    layer = LayerPlan("conv\n1", conv, 1, VARIANT, winograd, 10.0, 12.0, 15.5, "split")
    told = str(dataclasses.replace(PLAN, layers=(*PLAN.layers, layer))).splitlines()
    assert next(line for line in told if "Winograd" in line).endswith(r"not its neighbours alone: conv\n1")
    assert "Winograd" not in str(PLAN)


@pytest.mark.parametrize(
    "total_us, interval_us, shown",
    [
        (24_200.0, (22_800.0, 27_000.0), "24.2 ms (22.8 to 27.0)"),
        (17.5, (16.0, 20.25), "17.5 us (16.0 to 20.2)"),
        (17.5, (17.5, 17.5), "17.5 us"),
        (1500.0, (0.0, 0.0), "1.5 ms"),
    ],
)
def test_a_plan_says_what_it_expects_with_its_interval(total_us, interval_us, shown):
    plan = dataclasses.replace(PLAN, total_us=total_us, interval_us=interval_us)
    assert f"2 layers, expected {shown}\n" in str(plan)


@pytest.mark.parametrize("interval", [[1.0], [2.0, 1.0], [1.0, 2.0, 3.0], "12", [1.0, None]])
def test_what_is_no_interval_is_refused(interval):
    values = PLAN.to_json() | {"interval_us": interval}
    with pytest.raises(FileFormatError, match="the plan is damaged"):
        Plan.from_json(values)
