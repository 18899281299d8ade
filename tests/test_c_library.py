"""The C library: every file compiles by itself without a warning, and exports nothing but what its header says."""

import re
import subprocess
from pathlib import Path

import pytest

from tvm_coexec.compiler.toolchain import c_compiler
from tvm_coexec.runtime import library
from tvm_coexec.runtime.library import SOURCE_FOLDER


@pytest.mark.parametrize("source", sorted(SOURCE_FOLDER.glob("*.c")), ids=lambda path: path.name)
def test_a_file_compiles_without_a_warning(source: Path, tmp_path: Path) -> None:
    options = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
    command = [c_compiler(), *options, "-c", str(source), "-o", str(tmp_path / "o")]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""


@pytest.mark.slow
def test_the_header_is_the_whole_interface(tmp_path: Path) -> None:
    built, sources = tmp_path / "libcoexec.so", map(str, SOURCE_FOLDER.glob("*.c"))
    options = ["-std=c11", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden"]
    subprocess.run([c_compiler(), *options, *sources, "-o", str(built), "-ldl", "-lm"], check=True)
    symbols = subprocess.run(["nm", "-D", "--defined-only", str(built)], capture_output=True, text=True, check=True)
    exported = {line.split()[-1] for line in symbols.stdout.splitlines()}
    declared = set(re.findall(r"COEXEC_API [^;(]*?(coexec_\w+)\(", (SOURCE_FOLDER / "coexec.h").read_text()))
    for_rpc = {name for name in exported if name.startswith("__tvm_ffi_coexec_")}
    assert exported - {"coexec_bind_support"} - for_rpc == declared and for_rpc
    assert {f"coexec_{name}" for name in library._FUNCTIONS} <= declared
