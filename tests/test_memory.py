"""A module's memory: what is not stored is zero, blocks are aligned, and they do not meet."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_builder import OnnxBuilder, linear
from slow import slow_except
from small_modules import chain, chain_of

from tvm_coexec import api
from tvm_coexec.compiler.packaging import package
from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import DeviceError
from tvm_coexec.frontends import ReadModel, read_model
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.loaded import Loaded
from tvm_coexec.runtime.module import Module

ALIGNMENT = 128


def blocks_of(loaded: Loaded) -> list[np.ndarray]:
    """Each block once."""
    sources = {number: source for source, number in loaded._blocks.items()}
    return [loaded.block(source) for source in sources.values()]


@pytest.mark.parametrize("mechanism", slow_except(["svm", "event", "mapped"], 0, 1))
def test_blocks_are_zero_aligned_and_apart(device: Device, mechanism: str) -> None:
    if mechanism == "svm" and device.mechanism != "svm":
        pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
    used = open_device(device.info.name, mechanism=mechanism)
    graph, choices = chain_of(used, 4, 700, 96)
    built = package(graph, choices, target_for(used.facts()), used.facts(), seed=1)
    for _ in range(2):  # the second time some of the memory was used before
        blocks = blocks_of(Loaded(built, used, timeout_s=5.0, yields=False, adapt=False))
        assert sum(map(len, blocks)) > 1 << 20
        for number, block in enumerate(blocks, 1):
            assert block.ctypes.data % ALIGNMENT == 0
            assert not block.any()
            block[:] = number
        for number, block in enumerate(blocks, 1):
            assert (block == number).all()


def test_what_was_read_of_a_file_is_let_go_before_kernels_are_built(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds a model's weights a second time."""
    builder = OnnxBuilder(x=(5, 64))
    path = tmp_path / "model.onnx"
    path.write_bytes(builder.model(linear(builder, "x", 64, 96)).SerializeToString())
    read: list[weakref.ref[ReadModel]] = []

    def read_and_note(*arguments: Any) -> ReadModel:
        found = read_model(*arguments)
        read.append(weakref.ref(found))
        return found

    monkeypatch.setattr(api, "read_model", read_and_note)
    monkeypatch.setattr(api, "build_graph", lambda *_, **__: [reference() for reference in read])
    assert api.build(path, device=device, split="cpu") == [None]


def test_memory_that_the_device_has_not_is_named(device: Device) -> None:
    if device.mechanism != "svm":
        pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
    built, _ = chain(device, 2, 5, 64)
    first, *others = built.manifest.tensors
    huge = replace(first, shape=(1 << 32, 64))
    manifest = replace(built.manifest, tensors=(huge, *others))
    with pytest.raises(DeviceError, match=r"gives no 10995116\d+ bytes of memory.*; run a smaller network"):
        Module(replace(built, manifest=manifest), device)
