"""Module files: what is written is read again, and damaged and foreign files are refused."""

import io
import json
import os
import platform
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_modules import chain, expected, one_layer, with_constants

from tvm_coexec import cli
from tvm_coexec.errors import FileFormatError, KernelError
from tvm_coexec.layers import Linear
from tvm_coexec.module import package
from tvm_coexec.module.package import Package
from tvm_coexec.module.tensors import Source
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.module import Module, load

pytestmark = pytest.mark.one_runtime

LAYER = Linear(50, 64, 100, ("silu",))


def rewrite(path: Path, **changed: bytes) -> None:
    """Write a module file again, with other contents in the place of some sections."""
    sections = package.read_sections(memoryview(path.read_bytes()), path)
    assert changed.keys() <= sections.keys()
    content = io.BytesIO()
    package.write_sections(content, {name: [changed.get(name, old)] for name, old in sections.items()})
    path.write_bytes(content.getvalue())


def test_a_file_survives_a_round_trip(device: Device, tmp_path: Path) -> None:
    built, _ = chain(device, 2, 5, 64)
    module = Module(built, device)
    module.export(tmp_path / "m.coexec")
    x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    again = load(tmp_path / "m.coexec", device=device)
    np.testing.assert_array_equal(again(x), module(x))
    assert again.splits == module.splits


def test_constants_of_any_form_survive_a_round_trip(device: Device, tmp_path: Path) -> None:
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
            assert np.shares_memory(array, one._loaded.block(source))
            np.testing.assert_array_equal(array, built.constants[source])
    path.write_bytes(b"")
    loaded.export(path)
    assert path.read_bytes() == built.to_bytes()


def test_constants_that_several_threads_read_are_whole(device: Device, tmp_path: Path) -> None:
    """A piece that one of them reads at once holds the ends of some constants and a part of the largest."""
    path, rng = tmp_path / "m.coexec", np.random.default_rng(0)
    sizes = {"a": 700_001, "b": 9_000_000, "c": 5, "d": 4 << 20, "e": 1_000_003}
    constants = {name: rng.integers(0, 256, size, np.uint8) for name, size in sizes.items()}
    built, nodes = chain(device, 2, 5, 64)
    with_constants(built, **constants).write(path)
    loaded, x = load(path, device=device), rng.standard_normal((5, 64), np.float32)
    np.testing.assert_allclose(loaded(x), expected(nodes, x), rtol=1e-4, atol=1e-5)
    for role, array in constants.items():
        np.testing.assert_array_equal(loaded._loaded.block(Source.constant("nothing", role))[: array.size], array)
    content = path.read_bytes()
    for place in range(len(content) - (1 << 20), len(content) // 8, -(3 << 20)):
        path.write_bytes(damaged(content, place))
        with pytest.raises(FileFormatError, match="constants have another checksum"):
            load(path, device=device)
    path.write_bytes(content[: -(1 << 20)])
    with pytest.raises(FileFormatError, match="damaged"):
        load(path, device=device)


def test_what_a_file_holds_is_printed(device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.coexec"
    built, _ = chain(device, 2, 5, 64)
    built.write(path)
    assert cli.main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "input t0: float32 (5, 64)" in printed and "output t2: float32 (5, 64)" in printed
    assert "layer1: linear, 1 of 2 units by channels on the CPU, after 1" in printed
    for step in built.manifest.steps:
        assert all(launch.symbol in printed for half in (step.cpu, step.gpu) if half for launch in half.launches)


def damaged(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


def test_a_byte_that_is_another_is_seen_wherever_it_is(device: Device, tmp_path: Path) -> None:
    """Every byte of the header and of the table of sections, and some of each section and between them."""
    path = tmp_path / "m.coexec"
    content = chain(device, 2, 5, 64)[0].to_bytes()
    head = 32 + 24 * len(package.SECTIONS)
    sections = package._SECTION.iter_unpack(content[32:head])
    places = {place + offset for _, _, place, size in sections for offset in (0, size // 2, size - 1) if size}
    for place in [*range(head), *sorted(places)]:
        path.write_bytes(damaged(content, place))
        with pytest.raises(FileFormatError):
            load(path, device=device)


def test_cut_files_are_refused(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "m.coexec"
    content = one_layer(LAYER, device).to_bytes()
    with pytest.raises(FileFormatError, match="no module at"):
        load(tmp_path / "none", device=device)
    for cut in (1, 10, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(FileFormatError, match="no module or is damaged"):
            load(path, device=device)
    path.write_bytes(content + b"more")
    with pytest.raises(FileFormatError, match="no module or is damaged"):
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
    sections = package.read_sections(memoryview(path.read_bytes()), path)
    rewrite(path, description=json.dumps({**json.loads(bytes(sections["description"])), **change}).encode())
    with pytest.raises(FileFormatError, match=message):
        load(path, device=device)


def test_the_c_library_refuses_code_for_instructions_that_the_cpu_lacks(device: Device) -> None:
    """An app has no Python that looks first, and such code would end its process."""
    built = one_layer(LAYER, device)

    def with_features(features: list[str]) -> Package:
        facts = {**built.manifest.device, "cpu_features": features}
        return replace(built, manifest=replace(built.manifest, device=facts))

    features = built.manifest.device["cpu_features"]
    for own in (features, [], ["tsc_of_another_kind"]):  # the last is none that a compiler makes use of
        assert Module(with_features(own), device).check_step(0, 1, 1) < 1e-5
    for missing in ("avx9000", "sse4", "asimd" if "avx" in features else "avx"):  # "sse4" begins other features' names
        with pytest.raises(FileFormatError, match=f"for a CPU with {missing}, which this one lacks; build the module"):
            Module(with_features([*features, missing]), device)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(FileFormatError, match=f"'{path}' is no file; name a module"):
            Package.read(path)


@pytest.mark.parametrize(
    ("section", "content", "message"),
    [("cpu_code", b"nothing that runs", "build"), ("opencl", b"__kernel nonsense", "refuses the module's OpenCL code")],
)
def test_foreign_code_is_refused(device: Device, tmp_path: Path, section: str, content: bytes, message: str) -> None:
    path = tmp_path / "m.coexec"
    one_layer(LAYER, device).write(path)
    rewrite(path, **{section: content})
    with pytest.raises((FileFormatError, KernelError), match=message):
        load(path, device=device)


@pytest.mark.parametrize(
    ("place", "content"),
    [(18, b"\xb7\0" if platform.machine() == "x86_64" else b"\x3e\0"), (4, b"\1"), (5, b"\2"), (18, b"\0\x3e")],
    ids=["another CPU's", "of 32 bits", "big-endian", "of no CPU's kind"],
)
def test_code_for_other_machines_is_refused_though_every_checksum_is_right(
    place: int, content: bytes, device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.coexec"
    built = one_layer(LAYER, device)
    built.write(path)
    code = built.library
    rewrite(path, cpu_code=code[:place] + content + code[place + len(content) :])
    assert cli.main(["run", str(path), "--device", device.info.alias]) == 1
    told = "the module's CPU code is no library for this machine; build the module for it"
    assert capsys.readouterr().err == f"tvm-coexec: error: {told}\n"


def test_both_reasons_are_told_why_code_cannot_be_loaded(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "m.coexec"
    built = one_layer(LAYER, device)
    built.write(path)
    rewrite(path, cpu_code=built.library[:64])  # the header alone
    tried = r"from memory \(/proc/self/fd/\d+: [^()]+\), nor from \S+ \(\S+/coexec-kernels-\w+: [^()]+\)"
    with pytest.raises(FileFormatError, match=rf"^the module's CPU code cannot be loaded {tried}; build .*$"):
        load(path, device=device)


def test_a_file_of_the_other_byte_order_is_refused_though_every_checksum_is_right(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.coexec"
    content = one_layer(LAYER, device).to_bytes()
    little, checksum, section = package._HEADER, package._CHECKSUM, package._SECTION
    magic, version, count, nbytes, _ = little.unpack_from(content)
    end = package._TABLE_AT + count * section.size
    table = b"".join(struct.pack(">IIQQ", *entry) for entry in section.iter_unpack(content[package._TABLE_AT : end]))
    header = struct.pack(">8sIIQI", magic, version, count, nbytes, zlib.crc32(table))
    path.write_bytes(header + struct.pack(">I", zlib.crc32(header)) + table + content[end:])
    assert checksum.size + len(header) + len(table) == end
    assert cli.main(["run", str(path), "--device", device.info.alias]) == 1
    told = f"{path} has format version 67108864, this release reads 4; build it again"
    assert capsys.readouterr().err == f"tvm-coexec: error: {told}\n"


def test_a_file_that_is_cut_while_it_is_used_ends_in_nothing_but_an_error(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "m.coexec"
    built, _ = chain(device, 2, 5, 64)
    built.write(path)
    module = load(path, device=device)
    x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    before = module(x)
    with path.open("r+b") as file:
        file.truncate(100)
    np.testing.assert_array_equal(module(x), before)
