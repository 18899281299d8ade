"""Damaged module files: each is refused, or computes what the undamaged one does."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from damages import damaged
from onnx_builder import OnnxBuilder, linear
from outcomes import Outcome

import tvm_coexec
from tvm_coexec.errors import FileFormatError
from tvm_coexec.runtime.device import Device, open_device

INPUT = np.random.default_rng(0).standard_normal((1, 3, 8, 8), np.float32)


@cache
def _device() -> Device:
    return open_device(os.environ.get("CAMPAIGN_DEVICE") or None)


@cache
def _undamaged() -> tuple[bytes, np.ndarray]:
    """A module's file, and what it computes."""
    builder = OnnxBuilder(x=INPUT.shape)
    convolved = builder.add("Relu", builder.add("Conv", "x", builder.weights(40, 3, 3, 3)))
    wide = builder.add("Conv", convolved, builder.weights(40, 40, 3, 3))  # by Winograd's weights, which are made
    model = builder.model(linear(builder, builder.add("Flatten", wide), 640, 10))
    module = tvm_coexec.build(model, device=_device(), split=0.5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.coexec"
        module.export(path)
        return path.read_bytes(), module(INPUT)


def trial(seed: int) -> Outcome:
    """Load and run one file."""
    content, expected = _undamaged()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.coexec"
        path.write_bytes(damaged(content, np.random.default_rng(seed)))
        try:
            result = tvm_coexec.load(path, device=_device())(INPUT)
        except FileFormatError as error:
            is_line = "\n" not in str(error)
            return Outcome("right") if is_line else Outcome("raised", f"an error of several lines: {error}")
    return Outcome("right") if np.array_equal(result, expected) else Outcome("wrong", "another result")
