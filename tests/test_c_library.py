"""The C library: its files compile without a warning and in no rings, and export nothing but what its header says."""

import re
import subprocess
from pathlib import Path

import pytest
from test_architecture import in_rings

from tvm_coexec.compiler.toolchain import c_compiler
from tvm_coexec.runtime import library
from tvm_coexec.runtime.library import SOURCE_FOLDER


@pytest.mark.slow
def test_every_file_compiles_without_a_warning_and_none_calls_what_calls_it(tmp_path: Path) -> None:
    sources = sorted(SOURCE_FOLDER.glob("*.c"))
    command = [c_compiler(), "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-c", *map(str, sources)]
    compiled = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (compiled.stderr, compiled.returncode) == ("", 0)
    defined, wanted = dict[str, str](), list[tuple[str, str]]()
    for path in tmp_path.glob("*.o"):
        listed = subprocess.run(["nm", path], check=True, capture_output=True, text=True).stdout
        for *_, kind, symbol in map(str.split, listed.splitlines()):
            if kind == "U":
                wanted.append((path.stem, symbol))
            elif kind.isupper():
                defined[symbol] = path.stem
    edges: dict[str, set[str]] = {path.stem: set() for path in sources}
    for name, symbol in wanted:
        edges[name] |= {defined.get(symbol, name)} - {name}
    assert edges["module"] and not in_rings(edges)


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
