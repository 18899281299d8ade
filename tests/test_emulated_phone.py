"""A phone that is reached over a network alone, with TVM's own server and nothing of ours: found, built for, run on."""

import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import emulated_phone
import numpy as np
import onnx
import pytest
from onnx_builder import OnnxBuilder
from phones.commands import check_parts
from phones.network import TRACKER, running_phones
from phones.roots import home

from tvm_coexec import cli
from tvm_coexec.errors import InputError
from tvm_coexec.machine.clusters import BIG, LITTLE

KIND, KEY = "cortex-a76", "a-phone-of-a-test"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def phone(request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    try:
        check_parts()
    except InputError as error:
        pytest.skip(str(error))
    if not (home() / "root").exists() and not request.config.getoption("--skip-nothing"):
        pytest.skip("needs a phone's system; make it with `python scripts/emulated_phone.py make`")
    before, had_tracker = running_phones(), TRACKER.is_up()
    try:
        emulated_phone.start(1, KIND, KEY, None, None)
        (host,) = (one for one in running_phones() if one not in before)
        yield SimpleNamespace(host=host, where=["--tracker", f"{TRACKER.address}:9190", "--key", KEY])
    finally:
        for one in running_phones():
            if one not in before:
                one.down()
        if not had_tracker and TRACKER.is_up():
            TRACKER.down()


def test_a_phone_is_found_built_for_and_run_on(phone: SimpleNamespace, tmp_path: Path) -> None:
    assert emulated_phone.shell(int(phone.host.name.removeprefix("cophone")), ["python3", "-c", "import tvm_coexec"])
    told = StringIO()
    with redirect_stdout(told):
        assert cli.main(["devices", *phone.where, "--facts", str(tmp_path / "facts.json")]) == 0
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["machine"], facts["mechanism"]) == ("aarch64", "svm")
    assert {(one["name"], one["role"]) for one in facts["clusters"]} == {("Cortex-A55", LITTLE), ("Cortex-A76", BIG)}
    assert "asimddp" in facts["cpu_features"]

    builder = OnnxBuilder(x=(6, 96))
    weights = [builder.random.standard_normal(shape).astype(np.float32) / 10 for shape in ((96, 128), (128, 64))]
    hidden = builder.add("Relu", builder.add("MatMul", "x", builder.const(weights[0])))
    onnx.save(builder.model(builder.add("MatMul", hidden, builder.const(weights[1]))), tmp_path / "m.onnx")
    x = builder.random.standard_normal((6, 96)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)

    built = ["build", str(tmp_path / "m.onnx"), "--target", str(tmp_path / "facts.json"), "--split", "0.5"]
    assert cli.main([*built, "--out", str(tmp_path / "m.coexec")]) == 0
    run = ["run", str(tmp_path / "m.coexec"), "--input", str(tmp_path / "x.npy"), "--out", str(tmp_path / "y.npz")]
    assert cli.main([*run, *phone.where]) == 0
    (y,) = np.load(tmp_path / "y.npz").values()
    expected = np.maximum(x.astype(np.float64) @ weights[0], 0) @ weights[1]
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()
