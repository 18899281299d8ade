"""A phone that is reached over a network alone and has nothing of ours: found, tuned, built for, run on, compared."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import compare_grid_search
import emulated_phone
import numpy as np
import onnx
import pytest
from onnx_builder import OnnxBuilder
from phones.commands import check_parts
from phones.network import TRACKER, Host, running_phones
from phones.roots import home

from tvm_coexec import cli
from tvm_coexec.errors import InputError
from tvm_coexec.layers import Linear
from tvm_coexec.machine.clusters import BIG, LITTLE
from tvm_coexec.profile import Profile

KIND, OTHER_KIND = "cortex-a76", "cortex-a53"
KEY = f"a-phone-of-test-{os.getpid()}"  # a tracker that others left may still know their phones

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Host]]:
    """Starts a phone of a kind, all with one key."""
    try:
        check_parts()
    except InputError as error:
        pytest.skip(str(error))
    if not (home() / "root").exists() and not request.config.getoption("--skip-nothing"):
        pytest.skip("needs a phone's system; make it with `python scripts/emulated_phone.py make`")
    before, started = running_phones(), list[Host]()
    had_tracker = TRACKER.is_up() and bool(TRACKER.processes())

    def start(kind: str) -> Host:
        emulated_phone.start(1, kind, KEY, None, None)
        started.extend(one for one in running_phones() if one not in [*before, *started])
        return started[-1]

    try:
        yield start
    finally:
        for one in started:
            one.down()
        if not had_tracker and TRACKER.is_up():
            TRACKER.down()


@pytest.fixture(scope="module")
def phone(start: Callable[[str], Host]) -> Host:
    return start(KIND)


WHERE = ["--tracker", f"{TRACKER.address}:9190", "--key", KEY]


@pytest.fixture(scope="module")
def profile(phone: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What little is learnt of the phone in no time."""
    path = tmp_path_factory.mktemp("tuned") / "profile"
    assert cli.main(["tune", *WHERE, "--minutes", "0.01", "--out", str(path)]) == 0
    return path


def model(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write a model of two layers there, and its input; both, and what float64 makes of it."""
    builder = OnnxBuilder(x=(6, 96))
    weights = [builder.random.standard_normal(shape).astype(np.float32) / 10 for shape in ((96, 128), (128, 64))]
    hidden = builder.add("Relu", builder.add("MatMul", "x", builder.const(weights[0])))
    onnx.save(builder.model(builder.add("MatMul", hidden, builder.const(weights[1]))), folder / "m.onnx")
    x = builder.random.standard_normal((6, 96)).astype(np.float32)
    np.save(folder / "x.npy", x)
    return x, np.maximum(x.astype(np.float64) @ weights[0], 0) @ weights[1]


def assert_runs_as_float64(folder: Path, expected: np.ndarray) -> None:
    run = ["run", str(folder / "m.coexec"), "--input", str(folder / "x.npy"), "--out", str(folder / "y.npz")]
    assert cli.main([*run, *WHERE]) == 0
    (y,) = np.load(folder / "y.npz").values()
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_phone_is_found_built_for_and_run_on(phone: Host, tmp_path: Path) -> None:
    assert emulated_phone.shell(int(phone.name.removeprefix("cophone")), ["python3", "-c", "import tvm_coexec"])
    told = StringIO()
    with redirect_stdout(told):
        assert cli.main(["devices", *WHERE, "--facts", str(tmp_path / "facts.json")]) == 0
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["machine"], facts["mechanism"]) == ("aarch64", "svm")
    assert {(one["name"], one["role"]) for one in facts["clusters"]} == {("Cortex-A55", LITTLE), ("Cortex-A76", BIG)}
    assert "asimddp" in facts["cpu_features"]

    _, expected = model(tmp_path)
    built = ["build", str(tmp_path / "m.onnx"), "--target", str(tmp_path / "facts.json"), "--split", "0.5"]
    assert cli.main([*built, "--out", str(tmp_path / "m.coexec")]) == 0
    assert_runs_as_float64(tmp_path, expected)


def test_what_is_learnt_of_a_phone_plans_what_runs_there(profile: Path, tmp_path: Path) -> None:
    _, expected = model(tmp_path)
    built = ["build", str(tmp_path / "m.onnx"), "--target", str(profile), "--profile", str(profile)]
    assert cli.main([*built, "--out", str(tmp_path / "m.coexec")]) == 0
    assert_runs_as_float64(tmp_path, expected)
    bench = ["bench", str(tmp_path / "m.coexec"), "--minutes", "0.05", "--out", str(tmp_path / "minutes.json")]
    assert cli.main([*bench, *WHERE]) == 0
    (minute,) = json.loads((tmp_path / "minutes.json").read_text())
    assert min(minute["latency_us"]) > 0 and minute["sensors"]["mhz"]


def test_the_best_of_all_splits_is_looked_for_on_a_phone(profile: Path, tmp_path: Path) -> None:
    layer = Linear(4, 64, 96, ("bias", "relu"))
    with_splits = compare_grid_search.compare_all(
        str(profile), [layer], str(tmp_path / "out"), "a phone", f"{TRACKER.address}:9190", KEY
    )
    (grid,) = with_splits[0].grids
    assert set(grid.us) == set(range(layer.units + 1)) and 0 < with_splits[0].max_rel_error <= 1e-5


def test_a_phone_of_another_kind_under_the_same_key_is_named_and_left_alone(
    profile: Path, start: Callable[[str], Host], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = start(OTHER_KIND)
    assert cli.main(["tune", *WHERE, "--minutes", "0.01", "--out", str(profile)]) == 0
    told = capsys.readouterr().err
    assert f"the device at {other.address}:" in told and "of another kind" in told and "Cortex-A53" in told
    with Profile.open(profile) as tuned:
        assert {run.facts["cpu_model"] for run in tuned.runs()} == {tuned.facts["cpu_model"]}
