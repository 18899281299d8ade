"""Damaged entries of caches, of graphs, kernels and built programs: each is noticed, and made anew at no one's cost."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from damages import damaged
from onnx_builder import OnnxBuilder, linear
from outcomes import Outcome

import tvm_coexec
from tvm_coexec.compiler.kernels import kept_kernels
from tvm_coexec.runtime.device import open_device

INPUT = np.random.default_rng(0).standard_normal((8, 64), np.float32)


def _result(cache_folder: Path) -> np.ndarray:
    """What a layer computes that is built by way of a cache, by a device that has built nothing yet."""
    builder = OnnxBuilder(x=INPUT.shape)
    model = cache_folder / "model.onnx"
    model.write_bytes(builder.model(linear(builder, "x", 64, 40)).SerializeToString())
    os.environ["XDG_CACHE_HOME"] = str(cache_folder)
    kept_kernels.cache_clear()
    device = open_device(os.environ.get("CAMPAIGN_DEVICE") or None)
    result: np.ndarray = tvm_coexec.build(model, device=device, split=0.5)(INPUT)
    return result


@cache
def _undamaged() -> tuple[tempfile.TemporaryDirectory[str], np.ndarray]:
    """Full caches, and what was computed as they were filled."""
    folder = tempfile.TemporaryDirectory()
    return folder, _result(Path(folder.name))


def _entries(folder: Path, kind: str) -> list[Path]:
    return sorted(path for path in Path(folder, "tvm-coexec", kind).rglob("*") if path.is_file())


def trial(seed: int) -> Outcome:
    """Build by way of caches one of which has a damaged entry."""
    random = np.random.default_rng(seed)
    full, expected = _undamaged()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(full.name, folder, dirs_exist_ok=True)
        entries = _entries(Path(folder), ("graphs", "kernels", "programs")[random.integers(0, 3)])
        entry = entries[random.integers(0, len(entries))]
        whole = entry.read_bytes()
        content = damaged(whole, random)
        entry.write_bytes(content)
        result = _result(Path(folder))
        if not np.array_equal(result, expected):
            return Outcome("wrong", f"another result by way of {entry.relative_to(folder)}")
        if entry.read_bytes() == content != whole:
            return Outcome("wrong", f"the damaged {entry.relative_to(folder)} stays")
    return Outcome("right")
