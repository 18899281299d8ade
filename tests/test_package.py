"""Module files: what is written is read again, and damaged and foreign files are refused."""

import json
import os
import platform
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_modules import chain, one_layer

from tvm_coexec.errors import DeviceError, FileFormatError
from tvm_coexec.layers import Linear
from tvm_coexec.module import package
from tvm_coexec.module.manifest import ConstantSpec
from tvm_coexec.module.package import Package
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.module import Module, load
from tvm_coexec.runtime.stitch import Library

pytestmark = pytest.mark.one_runtime

LAYER = Linear(50, 64, 100, ("silu",))


def npy_header(dtype: str, shape: str) -> bytes:
    """The beginning of a .npy file of version 1.0."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def rewrite(path: Path, changed: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Write a module file again, with other entries in the place of some."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    assert changed.keys() <= entries.keys()
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {**entries, **changed}.items():
            archive.writestr(name, data)


def test_a_file_survives_a_round_trip(device: Device, tmp_path: Path) -> None:
    built, _ = chain(device, 2, 5, 64)
    module = Module(built, device)
    module.export(tmp_path / "m.coexec")
    x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    again = load(tmp_path / "m.coexec", device=device)
    np.testing.assert_array_equal(again(x), module(x))
    assert again.splits == module.splits


def with_constants(built: Package, **constants: np.ndarray) -> Package:
    """The package with constants that nothing reads."""
    specs = tuple(ConstantSpec("nothing", role, array.shape, str(array.dtype)) for role, array in constants.items())
    manifest = replace(built.manifest, constants=(*built.manifest.constants, *specs))
    return replace(
        built, manifest=manifest, constants={**built.constants, **{spec.source: constants[spec.role] for spec in specs}}
    )


@pytest.mark.parametrize("long_bytes", [1 << 30, 1 << 10], ids=["short entries", "long entries"])
def test_constants_of_any_form_survive_a_round_trip(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long_bytes: int
) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "scalar": np.array(-np.inf, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "mask": rng.random((3, 5)) > 0.5,
        "indices": rng.integers(0, 9, (7, 1, 2)),
        "strided": rng.standard_normal((64, 66), np.float32)[::3, ::2],
        "by columns": np.asfortranarray(rng.standard_normal((30, 41), np.float32)),
    }
    built = with_constants(chain(device, 2, 5, 64)[0], **constants)
    monkeypatch.setattr(package, "_LONG_BYTES", long_bytes)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 2 * long_bytes - 1)
    built.write(tmp_path / "m.coexec")
    again = Package.read(tmp_path / "m.coexec")
    assert list(again.constants) == list(built.constants)
    for source, array in built.constants.items():
        assert again.constants[source].dtype == array.dtype
        np.testing.assert_array_equal(again.constants[source], array, strict=True)
    assert again.to_bytes() == built.to_bytes() == (tmp_path / "m.coexec").read_bytes()


@pytest.mark.parametrize("mechanism", [None, "event"])
def test_a_module_holds_its_weights_once(device: Device, tmp_path: Path, mechanism: str | None) -> None:
    used = open_device(device.info.name, mechanism=mechanism) if mechanism else device
    path = tmp_path / "m.coexec"
    built, _ = chain(used, 2, 5, 64)
    module = Module(built, used)
    module.export(path)
    loaded = load(path, device=used)
    for one in (module, loaded):
        one.run()
        assert one._package.constants
        for source, array in one._package.constants.items():
            assert np.shares_memory(array, one._executor.blocks[source].array)
            np.testing.assert_array_equal(array, built.constants[source])
    path.write_bytes(b"")
    loaded.export(path)
    assert path.read_bytes() == built.to_bytes()


def damaged(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


@pytest.mark.parametrize("offset", [0, 6, 8, 10, 20, 40, 70, 127, 128, 9000])
def test_damaged_constants_are_refused(device: Device, tmp_path: Path, offset: int) -> None:
    path = tmp_path / "m.coexec"
    content = chain(device, 2, 5, 64)[0].to_bytes()
    path.write_bytes(damaged(content, content.index(b"\x93NUMPY") + offset))
    with pytest.raises(FileFormatError, match="is no module or is damaged"):
        load(path, device=device)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (b"nothing of numpy's", "the weights of 'layer0' cannot be read"),
        (npy_header("<f4", "(2, ("), "the weights of 'layer0' cannot be read"),
        (npy_header("|O", "(2,)"), r"as object \(2,\), its manifest says float32"),
        (npy_header("<f4", "(2, 4096)"), r"as float32 \(2, 4096\), its manifest says float32"),
    ],
    ids=["no header", "half a header", "objects", "other shape"],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_foreign_constants_are_refused(
    device: Device, tmp_path: Path, entry: bytes, message: str, compression: int
) -> None:
    path = tmp_path / "m.coexec"
    built = chain(device, 2, 5, 64)[0]
    built.write(path)
    rewrite(path, {"constants/0.npy": entry}, compression)
    with pytest.raises(FileFormatError, match=message):
        load(path, device=device)


@pytest.mark.parametrize(("cut", "compression"), [(8, zipfile.ZIP_STORED), (0, zipfile.ZIP_DEFLATED)])
def test_constants_that_do_not_lie_there_whole_are_refused(
    device: Device, tmp_path: Path, cut: int, compression: int
) -> None:
    path = tmp_path / "m.coexec"
    built = chain(device, 2, 5, 64)[0]
    built.write(path)
    name = "constants/0.npy"
    with zipfile.ZipFile(path) as archive:
        content = archive.read(name)
    rewrite(path, {name: content[: len(content) - cut]}, compression)
    with pytest.raises(FileFormatError, match="is compressed or cut off"):
        load(path, device=device)


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
        manifest = json.loads(archive.read("manifest.json"))
    rewrite(path, {"manifest.json": json.dumps({**manifest, **change}).encode()})
    with pytest.raises(FileFormatError, match=message):
        load(path, device=device)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(FileFormatError, match=f"{path} is no file; name a module"):
            Package.read(path)


def test_a_folder_that_runs_no_code_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of the process").mkdir()
    library = tmp_path / "of the process" / "cpu.so"
    library.touch()
    with pytest.raises(FileFormatError, match="build the module for this machine"):
        Library(library)
    noexec = SimpleNamespace(f_flag=os.ST_NOEXEC)
    monkeypatch.setattr("tvm_coexec.runtime.stitch.os.statvfs", lambda path: noexec)
    with pytest.raises(DeviceError, match=f"no code may be run in {tmp_path}, .* let TMPDIR name another folder"):
        Library(library)
