"""What is wrong with a call is told before anything heavy is loaded that does not matter for it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from onnx_builder import OnnxBuilder, linear
from synthetic_device import PLANNING
from test_tuning import FACTS
from tflite_writer import Writer

from tvm_coexec.opencl.discovery import find_device
from tvm_coexec.profile import Profile
from tvm_coexec.tuning.alone import alone_with_device

EARLY = {
    "there is no model file": ["check no.onnx", "build no.onnx --split 0.5 --out z", "tune --out p --layers no.onnx"],
    "the model has no nodes": ["check empty.onnx", "plan empty.onnx --profile tuned"],
    "Wire format was corrupt": ["check noise.onnx", "build noise.onnx --split cpu --out z"],
    "is no TFLite model": ["check noise.tflite", "build noise.tflite --split cpu --out z"],
    "the shape [1, 2] does not fit": ["check m.onnx --shape x=1,2", "build m.onnx --split cpu --out z --shape x=1,2"],
    "a shape is given for 'y'": ["check m.onnx --shape y=1,2", "tune --out p --layers m.onnx --shape y=1"],
    "Det (node 'n0') is an operator that cannot be imported": ["check det.onnx", "build det.onnx --split cpu --out z"],
    "RandomNormalLike (node 'n0') makes random numbers": ["check random.onnx", "tune --out p --layers random.onnx"],
    "Reshape (node 'n0') breaks the rules of ONNX": ["check reshaped.onnx", "build reshaped.onnx --split cpu --out z"],
    "Gather (node 'n0') breaks the rules of ONNX": ["check gathered.onnx", "build gathered.onnx --split cpu --out z"],
    "output 'v0' has no elements": ["check empty-slice.onnx", "build empty-slice.onnx --split cpu --out z"],
    "tensor 'x' has 70 axes, and arrays of numpy 1 have 32": ["check axes.onnx", "build axes.onnx --split cpu --out z"],
    "SKIP_GRAM (tensor 'skip_gram1') is an operator that cannot be imported": ["build gram.tflite --split cpu --out z"],
    "Foo (custom operator 'foo1'): no operators of TFLite's own": ["build foo.tflite --split cpu --out z"],
    "split 'most' is none of": ["check m.onnx --split most", "build m.onnx --split most --out z"],
    "split nan is none of": ["check m.onnx --split nan", "build m.onnx --split nan --out z"],
    "needs a profile": ["check m.onnx --split predicted", "build m.onnx --out z"],
    "there is no profile at no": ["check m.onnx --profile no", "plan m.onnx --profile no", "profile show no"],
    "is a file, and a profile a folder": ["tune --out m.onnx", "tune --out m.onnx --device none"],
    "/proc/no/p cannot be used": ["tune --out /proc/no/p"],
    "was not tuned to the end": [
        "plan m.onnx --profile p",
        "build m.onnx --profile p --out z",
        "check m.onnx --profile p",
    ],
    "is out of reach": ["tune --out z --tracker 127.0.0.1:1 --key k", "run m.onnx --tracker 127.0.0.1:1 --key k"],
    "names a device at a tracker": ["devices --key k", "tune --out z --key k", "run m.onnx --key k"],
    "it does not begin as a module does": ["run noise.onnx", "inspect noise.onnx", "export noise.onnx --c-project c"],
}
"""What is known without the compiler, without predictors and without a device, and the calls that are told so."""

BEFORE_OPENING = {
    "no OpenCL device is called 'none'": [
        *("check m.onnx --device none", "build m.onnx --split cpu --out z --device none", "doctor --device none")
    ],
    "names core 65535": ["build m.onnx --split cpu --out z --gpu-cores 65535"],
    "belongs to 'pocl: test'": [
        *("build m.onnx --profile tuned --out z --device pocl", "check m.onnx --profile tuned --device pocl")
    ],
}
"""What is known once the OpenCL devices of the machine are, none of which is opened."""

BEFORE_TUNING = {
    "no OpenCL device is called 'none'": ["tune --out z --device none"],
    "names core 65535": ["tune --out z --cpu-cores 65535"],
    "each spins while it waits": ["tune --out z --device pocl --cpu-cores 0 --gpu-cores 0"],
    "belongs to 'pocl: test'": ["tune --out tuned --device pocl"],
}
"""What another process tells a tuning, since the one that tunes starts no driver."""

HELD = {"is being tuned or measured by process": ["tune --out z --device pocl"]}

NO_PROCESS = "subprocess.Popen = None"
"""What makes each attempt to start a process fail."""


def test_what_needs_no_compiler_is_told_before_one_is_loaded(tmp_path: Path) -> None:
    _write_files(tmp_path)
    _check_told(EARLY, {"tvm", "xgboost", "pyopencl", "onnxruntime"}, tmp_path, NO_PROCESS)


def test_what_needs_no_device_to_be_open_is_told_before_a_process_is_started_for_it(tmp_path: Path) -> None:
    _write_files(tmp_path)
    _check_told(BEFORE_OPENING, {"tvm", "xgboost", "onnxruntime"}, tmp_path, NO_PROCESS)


def test_what_a_tuning_cannot_do_is_told_before_a_compiler_or_a_driver_is_loaded(tmp_path: Path) -> None:
    _write_files(tmp_path)
    with alone_with_device(find_device("pocl").name):
        _check_told(BEFORE_TUNING | HELD, {"tvm", "xgboost", "pyopencl", "onnxruntime"}, tmp_path)


def _write_files(folder: Path) -> None:
    builder = OnnxBuilder(x=(9, 64))
    (folder / "m.onnx").write_bytes(builder.model(linear(builder, "x", 64, 96)).SerializeToString())
    operators = [
        ("det", "Det"),
        ("random", "RandomNormalLike"),
        ("reshaped", "Reshape", [7]),
        ("gathered", "Gather", [7]),
    ]
    for name, operator, *further in (*operators, ("empty-slice", "Slice", [1], [1])):
        builder = OnnxBuilder(x=(4, 4))
        model = builder.model(builder.add(operator, "x", *(builder.const(one, "int64") for one in further)))
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    builder = OnnxBuilder(x=(1,) * 70)
    (folder / "axes.onnx").write_bytes(builder.model(builder.add("Relu", "x")).SerializeToString())
    for code, name in (("SKIP_GRAM", "gram"), ("Foo", "foo")):
        writer = Writer()
        x = writer.tensor("x", (1, 4))
        (folder / f"{name}.tflite").write_bytes(writer.finish([x], [writer.add(code, [x], (1, 4))]))
    for name in ("noise.onnx", "noise.tflite"):
        (folder / name).write_bytes(np.random.default_rng(0).bytes(3000))
    (folder / "empty.onnx").touch()
    Profile.create(folder / "p", FACTS).close()
    with Profile.create(folder / "tuned", FACTS) as profile:
        profile.describe(planning=PLANNING)


def _check_told(told: dict[str, list[str]], heavy: set[str], folder: Path, first: str = "") -> None:
    """Each call ends in a line with its message, before anything heavy is loaded."""
    code = f"""
import contextlib, io, subprocess, sys
from tvm_coexec.cli import main
{first}
for message, calls in {told}.items():
    for call in calls:
        with contextlib.redirect_stderr(io.StringIO()) as told:
            status = main(call.split())
        lines = told.getvalue().splitlines()
        assert status == 1 and len(lines) == 1 and message in lines[0], (call, status, lines)
        loaded = {heavy} & set(sys.modules)
        assert not loaded, (call, loaded)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
