"""Module files: what is written is read again, and damaged and foreign files are refused."""

import json
import platform
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_modules import chain, one_layer

from tvm_coexec.errors import FileFormatError
from tvm_coexec.layers import Linear
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module, load

LAYER = Linear(50, 64, 100, ("silu",))


def test_a_file_survives_a_round_trip(device: Device, tmp_path: Path) -> None:
    built, _ = chain(device, 2, 5, 64)
    module = Module(built, device)
    module.export(tmp_path / "m.coexec")
    x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    again = load(tmp_path / "m.coexec", device=device)
    np.testing.assert_array_equal(again(x), module(x))
    assert again.splits == module.splits


def test_a_module_holds_its_weights_once(device: Device, tmp_path: Path) -> None:
    built, _ = chain(device, 2, 5, 64)
    module = Module(built, device)
    module.export(tmp_path / "m.coexec")
    loaded = load(tmp_path / "m.coexec", device=device)
    for one in (module, loaded):
        assert one._package.constants
        for name, array in one._package.constants.items():
            assert np.shares_memory(array, one._executor.blocks[name].array)
            np.testing.assert_array_equal(array, built.constants[name])
    loaded.export(tmp_path / "again.coexec")
    assert (tmp_path / "again.coexec").read_bytes() == (tmp_path / "m.coexec").read_bytes() == built.to_bytes()


def test_a_file_may_be_replaced_while_its_module_runs(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "m.coexec"
    Module(chain(device, 2, 5, 64)[0], device).export(path)
    module = load(path, device=device)
    x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    before = module(x)
    path.write_bytes(b"")
    np.testing.assert_array_equal(module(x), before)


def test_damaged_files_are_refused(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "m.coexec"
    Module(one_layer(LAYER, device), device).export(path)
    with pytest.raises(FileFormatError, match="no module at"):
        load(tmp_path / "none", device=device)
    content = path.read_bytes()
    for cut in (10, len(content) // 2, len(content) - 30):
        path.write_bytes(content[:cut])
        with pytest.raises(FileFormatError, match="no module or is damaged"):
            load(path, device=device)
    place = content.index(b"PK\x01\x02") + 8
    for encrypted_or_compressed in (b"\x01\x00\x00\x00", b"\x00\x00\x09\x00", b"\x00\x00\x08\x00", b"\x00\x00\x0e\x00"):
        path.write_bytes(content[:place] + encrypted_or_compressed + content[place + 4 :])
        with pytest.raises(FileFormatError, match="no module or is damaged"):
            load(path, device=device)
    path.write_bytes(content[:200] + bytes(byte ^ 255 for byte in content[200:210]) + content[210:])
    with pytest.raises(FileFormatError):
        load(path, device=device)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "format version 99"),
        ({"format": "other"}, "no tvm-coexec module"),
        ({"inputs": ["nothing"]}, "names 'nothing'"),
        ({"surprise": 1}, "manifest is damaged"),
        ({"device": None}, "manifest is damaged"),
        ({"plan": [1]}, "manifest is damaged"),
        ({"device": {"machine": "abacus"}}, "built for a CPU of kind abacus"),
        (
            {"device": {"machine": platform.machine(), "cpu_features": ["tsc", "avx9000"]}},
            "for a CPU with avx9000, which this one lacks",
        ),
    ],
)
def test_foreign_manifests_are_refused(change: dict[str, Any], message: str, device: Device, tmp_path: Path) -> None:
    path = tmp_path / "m.coexec"
    Module(one_layer(LAYER, device), device).export(path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["manifest.json"] = json.dumps({**json.loads(entries["manifest.json"]), **change}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(FileFormatError, match=message):
        load(path, device=device)
