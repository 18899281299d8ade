"""The comparison scripts, end to end on layers that take no time: their files, their fields, their errors."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_builder import OnnxBuilder, linear
from peers import PEERS
from shipped_models import PACKAGES

from tvm_coexec.prediction.evaluation import Evaluation
from tvm_coexec.runtime.device import Device

pytestmark = [pytest.mark.slow, pytest.mark.one_runtime]

SCRIPTS = Path(__file__).parent.parent / "scripts"
ENTRIES = [{"op": "linear", "m": 9, "k": 64, "n": 96}, {"op": "linear", "m": 2, "k": 70, "n": 40, "epilogue": ["bias"]}]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def result_of(name: str, out: Path, *arguments: str) -> dict[str, Any]:
    done = run(name, *arguments, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert (out / "result.md").read_text().startswith("# ")
    assert (out / "result.png").read_bytes().startswith(b"\x89PNG")
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    assert result["device"] in (out / "result.md").read_text()
    return result


@pytest.fixture
def profile(tuned: tuple[Path, list[Evaluation]]) -> Path:
    return tuned[0]


@pytest.fixture
def layers(tmp_path: Path) -> str:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(ENTRIES))
    return str(path)


def test_the_gpus_kernels_are_measured_in_turn_with_others(profile: Path, layers: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = result_of("compare_gpu_kernels.py", out, "--profile", str(profile), "--layers", layers)
    for entry, layer in zip(ENTRIES, result["layers"], strict=True):
        assert layer["n"] == entry["n"] and layer["own_us"] > 0 and layer["gflops"] > 0
        assert layer["max_rel_error"] < 1e-5 and layer["own_over_others"]["cuBLAS or cuDNN"] is None
        assert layer["others_us"]["dlight"] > 0 and layer["planned_over_best"] > 0
    assert "Not measured, since they are not here" in (out / "result.md").read_text()
    assert result["summary"]["peak_gflops"] > 0 and result["summary"]["peak_gbytes_a_second"] > 0


def test_the_grid_search_measures_every_split(profile: Path, layers: str, tmp_path: Path) -> None:
    result = result_of("compare_grid_search.py", tmp_path / "out", "--profile", str(profile), "--layers", layers)
    for entry, layer in zip(ENTRIES, result["layers"], strict=True):
        assert layer["n"] == entry["n"]
        assert [int(split) for split in layer["grid_us"]] == list(range(layer["units"] + 1))
        assert layer["best_us"] > 0 and layer["planned_us"] > 0 and layer["cpu_us"] > 0 and layer["gpu_us"] > 0
        assert 0 <= layer["planned_split"] <= layer["units"] and 0 <= layer["best_split"] <= layer["units"]
        assert layer["max_rel_error"] < 1e-5
        assert set(layer["samples_us"]) == {"cpu", "gpu", "best", "planned"}
    wanted = {"speedup_best", "speedup_planned", "planned_over_best", "max_speedup_planned"}
    assert wanted <= set(result["summary"])
    if "pocl" in result["device"] or "intel" in result["device"]:
        assert "bench device" in result["device"]


def test_the_peers_are_measured_on_the_same_layers(profile: Path, layers: str, tmp_path: Path) -> None:
    result = result_of("compare_peers.py", tmp_path / "out", "--profile", str(profile), "--layers", layers)
    assert len(result["layers"]) == len(ENTRIES)
    for layer in result["layers"]:
        assert all(layer[f"{name}_us"] > 0 for name in ("cpu", "gpu", "planned", "ort1", "ort2"))


def test_the_mechanisms_are_compared(device: Device, tmp_path: Path) -> None:
    result = result_of("compare_sync.py", tmp_path / "out", "--device", device.info.name, "--rounds", "3")
    assert {chain["mechanism"] for chain in result["chains"]} == {device.mechanism, "event", "mapped"}
    for chain in result["chains"] + result["single_layers"]:
        samples_us = chain["samples_us"]
        assert chain["overhead_us_per_layer"] == pytest.approx(np.median(samples_us["overhead"]))
        runs_us = np.reshape(samples_us["chain"], (len(samples_us["overhead"]), -1))
        halves_us = np.reshape(samples_us["halves"], (len(samples_us["overhead"]), -1))
        beyond_us = np.median(runs_us, axis=1) - np.median(halves_us, axis=1)
        assert samples_us["overhead"] == pytest.approx(list(beyond_us / chain["depth"]))
        assert chain["chain_us"] == pytest.approx(np.median(runs_us))
        assert chain["halves_us"] == pytest.approx(np.median(halves_us))


def test_splits_that_adapt_are_compared_with_fixed_ones(device: Device, tmp_path: Path) -> None:
    arguments = ("--device", device.info.name, "--rows", "1", "--rounds", "2")
    result = result_of("compare_adapting.py", tmp_path / "out", *arguments)
    assert result["gain"] == pytest.approx(np.median([fixed / adapting for fixed, adapting in result["disturbed_us"]]))
    assert result["cost"] == pytest.approx(np.median([adapting / fixed for fixed, adapting in result["quiet_us"]]) - 1)
    assert len(result["adaptations"]) == 2 and all("moves helped" in told for told in result["adaptations"])


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    builder = OnnxBuilder(x=(9, 64))
    hidden = builder.add("Relu", linear(builder, "x", 64, 96))
    path = tmp_path / "mlp.onnx"
    onnx.save(builder.model(linear(builder, hidden, 96, 40)), path)
    return path


def test_networks_are_compared_with_every_engine(profile: Path, mlp: Path, tmp_path: Path) -> None:
    arguments = ("--profile", str(profile), "--models", str(mlp), "--rounds", "2")
    result = result_of("compare_networks.py", tmp_path / "out", *arguments)
    (model,) = result["models"]
    assert model["name"] == "mlp"
    assert model["cpu_us"] > 0 and model["gpu_us"] > 0 and model["coexec_us"] > 0 and model["predicted_us"] > 0
    low_us, high_us = model["interval_us"]
    assert low_us <= model["predicted_us"] <= high_us
    assert model["is_inside"] == (low_us <= model["coexec_us"] <= high_us)
    assert set(model["peers"]) | set(model["not_measured"]) == set(PEERS)
    assert all(set(by_threads) == {"1", "2"} for by_threads in model["peers"].values())
    assert "onnxruntime" in model["peers"]
    assert model["max_rel_error"] < 1e-5 and model["same_top1"]
    assert all(error < 1e-5 for error in model["peer_errors"].values())
    assert model["syncs"] >= 0 and model["peak_bytes"] > 4 * (64 * 96 + 96 * 40)
    assert set(model["samples_us"]) == set(model["spread_us"]) >= {"cpu", "gpu", "coexec", "onnxruntime 2"}
    assert set(model["repeated_us"]) == set(model["unsteady_turns"]) == set(model["samples_us"])
    text = (tmp_path / "out" / "result.md").read_text()
    assert all(f"mlp, {engine}: {why}" in text for engine, why in model["not_measured"].items())


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A cache as if all packages had been downloaded: two have models, of which one is damaged."""
    cache = tmp_path / "cache"
    for package in PACKAGES:
        (cache / package.replace("==", "-")).mkdir(parents=True)
    builder = OnnxBuilder(input1=("batch", 1, 64, 160))
    small = builder.add("MaxPool", "input1", kernel_shape=[8, 8], strides=[8, 8])
    convolved = builder.add("Relu", builder.add("Conv", small, builder.weights(40, 1, 3, 3)))
    pooled = builder.add("GlobalAveragePool", convolved)
    scores = linear(builder, builder.add("Flatten", pooled), 40, 10)
    for name in ("common", "common_old"):
        onnx.save(builder.model(scores), cache / "ddddocr" / f"{name}.onnx")
    (cache / "nudenet" / "damaged.tflite").write_bytes(b"nothing of the kind")
    return cache


def test_shipped_models_are_built_checked_and_timed(
    profile: Path, shipped: Path, tmp_path: Path, device: Device
) -> None:
    arguments = ("--cache", str(shipped), "--profile", str(profile), "--rounds", "2", "--device", device.info.name)
    result = result_of("real_models.py", tmp_path / "out", *arguments, "--only", "ddddocr/common,damaged")
    damaged, right = sorted(result["models"], key=lambda row: str(row["verdict"]))
    assert damaged["name"] == "nudenet/damaged" and damaged["verdict"] == "read failed"
    assert "is no TFLite model" in damaged["reason"]
    assert right["name"] == "ddddocr/common" and right["verdict"] == "right" and right["reason"] == ""
    time = right["stages"]["time"]
    assert set(time["samples_us"]) == {"cpu", "gpu", "coexec", "onnxruntime 1", "onnxruntime 2"}
    assert time["peer"] == "onnxruntime" and time["opaque_share"] == 0
    text = (tmp_path / "out" / "result.md").read_text()
    assert "1 read failed" in text and "1 right" in text and "- nudenet/damaged: " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "resnet18,lenet"], "no network named 'lenet'"),
        (["--models", "nowhere.onnx"], "there is no ONNX file nowhere.onnx"),
        (["--models", "resnet18", "--rounds", "0"], "--rounds must be at least 1"),
        (["--models", "resnet18"], "no profile at nowhere"),
    ],
    ids=["name", "path", "rounds", "profile"],
)
def test_networks_that_cannot_be_compared(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run("compare_networks.py", "--profile", "nowhere", *arguments, "--out", str(tmp_path))
    assert done.returncode == 1
    assert message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "nowhere", "--layers", "vit-base"], "no profile at nowhere"),
        (["--profile", "nowhere", "--layers", "none"], "no layers named 'none'"),
    ],
    ids=["profile", "layers"],
)
def test_errors_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run("compare_grid_search.py", *arguments, "--out", str(tmp_path))
    assert done.returncode == 1
    assert message in done.stderr and done.stderr.count("\n") == 1
