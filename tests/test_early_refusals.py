"""What is wrong with a call is told before anything heavy is loaded that does not matter for it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from onnx_builder import OnnxBuilder, linear
from test_tuning import FACTS

from tvm_coexec.profile import Profile

EARLY = {
    "there is no model file": ["check no.onnx", "build no.onnx --split 0.5 --out z", "tune --out p --layers no.onnx"],
    "the model has no nodes": ["check empty.onnx", "plan empty.onnx --profile p"],
    "Wire format was corrupt": ["check noise.onnx", "build noise.onnx --split cpu --out z"],
    "is no TFLite model": ["check noise.tflite", "build noise.tflite --split cpu --out z"],
    "the shape [1, 2] does not fit": ["check m.onnx --shape x=1,2", "build m.onnx --split cpu --out z --shape x=1,2"],
    "a shape is given for 'y'": ["check m.onnx --shape y=1,2", "tune --out p --layers m.onnx --shape y=1"],
    "split 'most' is none of": ["check m.onnx --split most", "build m.onnx --split most --out z"],
    "split nan is none of": ["check m.onnx --split nan", "build m.onnx --split nan --out z"],
    "needs a profile": ["check m.onnx --split predicted", "build m.onnx --out z"],
    "there is no profile at no": ["check m.onnx --profile no", "plan m.onnx --profile no", "profile show no"],
    "is a file, and a profile a folder": ["tune --out m.onnx", "tune --out m.onnx --device none"],
    "/proc/no/p cannot be used": ["tune --out /proc/no/p"],
    "names a device at a tracker": ["devices --key k", "tune --out z --key k", "run m.onnx --key k"],
    "it does not begin as a module does": ["run noise.onnx", "inspect noise.onnx", "export noise.onnx --c-project c"],
}
"""What is known without the compiler, without predictors and without a device, and the calls that are told so."""


def test_what_needs_no_compiler_is_told_before_one_is_loaded(tmp_path: Path) -> None:
    builder = OnnxBuilder(x=(9, 64))
    (tmp_path / "m.onnx").write_bytes(builder.model(linear(builder, "x", 64, 96)).SerializeToString())
    for name in ("noise.onnx", "noise.tflite"):
        (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "empty.onnx").touch()
    Profile.create(tmp_path / "p", FACTS).close()
    code = f"""
import contextlib, io, sys
from tvm_coexec.cli import main
for message, calls in {EARLY}.items():
    for call in calls:
        with contextlib.redirect_stderr(io.StringIO()) as told:
            status = main(call.split())
        lines = told.getvalue().splitlines()
        assert status == 1 and len(lines) == 1 and message in lines[0], (call, status, lines)
        loaded = {{"tvm", "xgboost", "pyopencl", "onnxruntime"}} & set(sys.modules)
        assert not loaded, (call, loaded)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
