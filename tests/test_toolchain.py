"""Modules for a device that is not at hand: its target and its toolchain come from its facts."""

import importlib.util
import json
import platform
import shutil
from pathlib import Path

import pytest
from test_api import block_model

from tvm_coexec import load, package
from tvm_coexec.compiler import toolchain
from tvm_coexec.errors import FileFormatError, InputError, ToolchainError
from tvm_coexec.module.package import Package

ARM_BOARD = {
    "name": "a board: gpu",
    "label": "an arm64 board",
    "mechanism": "svm",
    "machine": "aarch64",
    "cpu_features": ["fp", "asimd", "asimddp"],
    "cpu_cores": [0, 1],
    "gpu_cores": [],
    "device_type": "gpu",
    "max_group_size": 256,
    "compute_units": 4,
    "driver_version": "1",
}


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["gcc", "zig"])
def test_a_module_is_built_for_a_board_that_is_not_at_hand(
    tmp_path: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler == "zig":
        if importlib.util.find_spec("ziglang") is None:
            pytest.skip("needs the package ziglang")
        monkeypatch.setattr(toolchain, "_gnu_gcc", lambda triple: None)
    elif not shutil.which("aarch64-linux-gnu-gcc"):
        pytest.skip("needs aarch64-linux-gnu-gcc")
    (tmp_path / "board.json").write_text(json.dumps(ARM_BOARD))
    built = package(block_model(), tmp_path / "board.json", split=0.5)
    built.write(tmp_path / "m.coexec")
    library = Package.read(tmp_path / "m.coexec").library
    assert library[:5] == b"\x7fELF\x02" and int.from_bytes(library[18:20], "little") == 183  # EM_AARCH64
    assert built.manifest.device == ARM_BOARD
    runs_it = toolchain.runtime_library("aarch64-linux-gnu")
    assert runs_it[:5] == library[:5] and runs_it[18:20] == library[18:20] and b"coexec_module_open" in runs_it
    if platform.machine() != "aarch64":
        with pytest.raises(FileFormatError, match="built for a CPU of kind aarch64, this one is"):
            load(tmp_path / "m.coexec")


def test_what_holds_no_facts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "little.json").write_text('{"name": "x"}')
    for name, message in (
        ("none", "cannot read the facts"),
        ("list.json", "lacks"),
        ("little.json", "lacks compute_units, "),
    ):
        with pytest.raises(InputError, match=message):
            package(block_model(), tmp_path / name, split="cpu")
    with pytest.raises(InputError, match="needs the device"):
        package(block_model(), ARM_BOARD, split="measured")


def test_a_missing_cross_compiler_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_gnu_gcc", lambda triple: None)
    monkeypatch.setattr(toolchain, "_zig", lambda triple: None)
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    with pytest.raises(ToolchainError, match="apt install gcc-aarch64-linux-gnu`, or `pip install ziglang"):
        toolchain.cross_compiler("aarch64-linux-gnu")
    with pytest.raises(ToolchainError, match="set ANDROID_NDK_HOME"):
        toolchain.cross_compiler("aarch64-linux-android29")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            "a.c:1:1: fatal error: error closing /t/a.s: No space left on device\n 1 | int a;\ncompilation terminated.",
            r"\(a.c:1:1: fatal error: error closing /t/a.s: No space left on device\); free some space in ",
        ),
        (
            "a.c:1:1: warning: deprecated\nld: cannot find -lm\ncollect2: error: ld returned 1",
            r"\(ld: cannot find -lm\); reinstall it",
        ),
        (
            "/usr/bin/ld: final link failed: No space left on device\ncollect2: error: ld returned 1",
            r"\(/usr/bin/ld: final link failed: No space left on device\); free some space in ",
        ),
        ("clang: warning: an option\nKilled", r"\(Killed\); reinstall it"),
        ("", r"\(it ends with status 3\); reinstall it"),
    ],
)
def test_a_compiler_that_fails_is_quoted_with_a_remedy(told: str, message: str, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    (tmp_path / "told").write_text(told)
    compiler.write_text(f"#!/bin/sh\ncat {tmp_path}/told >&2\nexit 3\n")
    compiler.chmod(0o755)
    with pytest.raises(ToolchainError, match=message):
        toolchain._support((str(compiler),))


def test_the_ndks_clang_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clang = tmp_path / "toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android29-clang"
    clang.parent.mkdir(parents=True)
    clang.touch()
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path))
    assert toolchain.cross_compiler("aarch64-linux-android29") == (str(clang),)
