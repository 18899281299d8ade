"""Link compiled kernels to the library that a module carries, for this machine or for another.

Another machine's library is linked by the system's cross compiler, by the NDK's clang, or by zig's, whichever is found
first.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from tvm_coexec.errors import ToolchainError
from tvm_coexec.processes import python
from tvm_coexec.runtime.library import SOURCE_FOLDER

from .kernels import Kernel

_COMPILE_FLAGS = ("-std=c11", "-O2", "-fPIC", "-pthread", "-fvisibility=hidden")
_LINK_FLAGS = ("-shared", "-pthread", "-Wl,-z,max-page-size=16384")
"""Phones whose pages have 16 KiB load no library that is aligned to less."""
_LIBRARIES = ("-ldl", "-lm")

_CAUSE = re.compile(r"\berror\b|cannot|undefined|failed", re.IGNORECASE)
"""What the line of a compiler or a linker has that tells the cause: the first of such lines, or the last of all."""
_FULL = "No space left on device"

_ZIG_LIBC = "2.28"
"""The oldest version of glibc that a library for another machine asks for: Debian 10 has it."""


def link(kernels: Iterable[Kernel], triple: str | None = None) -> bytes:
    """A shared library of CPU kernels, and what they call.

    Parameters
    ----------
    triple
        The machine that runs it, such as ``aarch64-linux-gnu``; None for this one.

    Raises
    ------
    ToolchainError
        There is no C compiler for it, or it fails.
    """
    compiler = (c_compiler(),) if triple is None else cross_compiler(triple)
    return _linked(tuple({kernel.symbol: kernel for kernel in kernels}.values()), compiler)


@lru_cache(maxsize=16)
def _linked(kernels: tuple[Kernel, ...], compiler: tuple[str, ...]) -> bytes:
    """The last libraries are kept: calibration, comparisons and trial runs package the same modules again and again."""
    named = {f"{kernel.symbol}.o": kernel.code for kernel in kernels} | {"support.o": _support(compiler)}
    with tempfile.TemporaryDirectory() as folder:
        for name, code in named.items():
            (Path(folder) / name).write_bytes(code)
        output = Path(folder) / "cpu.so"
        objects = [str(Path(folder) / name) for name in named]
        _run([*compiler, *_LINK_FLAGS, *objects, "-o", str(output), *_LIBRARIES], "link the CPU kernels")
        return output.read_bytes()


@lru_cache(maxsize=4)
def _support(compiler: tuple[str, ...]) -> bytes:
    """What TVM's kernels call, compiled; all modules have it in common."""
    source = SOURCE_FOLDER / "kernel_support.c"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "support.o"
        _run([*compiler, *_COMPILE_FLAGS, "-c", str(source), "-o", str(output)], f"compile {source.name}")
        return output.read_bytes()


@lru_cache(maxsize=4)
def runtime_library(triple: str) -> bytes:
    """Build the C library that runs modules, for another machine.

    Raises
    ------
    ToolchainError
        There is no C compiler for it, or it fails.
    """
    sources = [str(source) for source in sorted(SOURCE_FOLDER.glob("*.c"))]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "libcoexec.so"
        command = [*cross_compiler(triple), *_COMPILE_FLAGS, *_LINK_FLAGS, *sources, "-o", str(output), *_LIBRARIES]
        _run(command, f"build the C library for {triple}")
        return output.read_bytes()


def _run(command: list[str], task: str) -> None:
    in_english = {**os.environ, "LC_ALL": "C"}
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=in_english)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"it ends with status {result.returncode}"]
        reason = " ".join(next(filter(_CAUSE.search, lines), lines[-1]).split())
        remedy = "reinstall it with the headers of its C library"
        if _FULL in result.stderr:
            remedy = f"free some space in {tempfile.gettempdir()}, or name another folder by TMPDIR"
        raise ToolchainError(f"{command[0]} cannot {task} ({reason}); {remedy}")


def c_compiler() -> str:
    """Find the C compiler: ``$CC``, ``cc``, ``gcc`` or ``clang``."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise ToolchainError("no C compiler (cc, gcc or clang) is installed; try `apt install gcc libc6-dev`, or set CC")


def cross_compiler(triple: str) -> tuple[str, ...]:
    """The command that compiles C for another machine; it takes the options of gcc."""
    found = _ndk_clang(triple) if "android" in triple else _gnu_gcc(triple)
    found = found or (_zig(triple) if "android" not in triple else None)
    if found:
        return found
    if "android" in triple:
        raise ToolchainError(
            f"no compiler for {triple} is found; install Android's NDK and set ANDROID_NDK_HOME to its directory"
        )
    machine = triple.partition("-")[0].replace("_", "-")
    raise ToolchainError(
        f"no compiler for {triple} is found; try `apt install gcc-{machine}-linux-gnu`, or `pip install ziglang`"
    )


def _gnu_gcc(triple: str) -> tuple[str, ...] | None:
    found = shutil.which(f"{triple}-gcc")
    return (found,) if found else None


def _ndk_clang(triple: str) -> tuple[str, ...] | None:
    folder = os.environ.get("ANDROID_NDK_HOME")
    prebuilt = Path(folder, "toolchains", "llvm", "prebuilt") if folder else Path("/nonexistent")
    return next(((str(path),) for path in sorted(prebuilt.glob(f"*/bin/{triple}-clang"))), None)


def _zig(triple: str) -> tuple[str, ...] | None:
    """zig's C compiler, from the package ziglang; it links against a C library that most boards have."""
    if importlib.util.find_spec("ziglang") is None:
        return None
    return tuple(python("ziglang", "cc", "-target", f"{triple}.{_ZIG_LIBC}"))
