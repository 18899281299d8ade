"""Link compiled kernels and the runtime to the library that a module carries."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from tvm_coexec.errors import ToolchainError
from tvm_coexec.runtime.stitch import SOURCES as STITCH_SOURCES

from .kernels import Kernel

_COMPILE_FLAGS = ("-std=c11", "-O2", "-fPIC", "-pthread", "-fvisibility=default")
_LINK_FLAGS = ("-shared", "-pthread")
_LIBRARIES = ("-ldl", "-lm")


def link(kernels: Iterable[Kernel]) -> bytes:
    """A shared library of CPU kernels with the stitch in it.

    Raises
    ------
    ToolchainError
        There is no C compiler, or it fails.
    """
    return _linked(tuple({kernel.symbol: kernel for kernel in kernels}.values()), c_compiler())


@lru_cache(maxsize=16)
def _linked(kernels: tuple[Kernel, ...], compiler: str) -> bytes:
    """The last libraries are kept: calibration, comparisons and rehearsals package the same modules again and again."""
    named = {f"{kernel.symbol}.o": kernel.code for kernel in kernels} | _stitch_objects(compiler)
    with tempfile.TemporaryDirectory() as folder:
        for name, code in named.items():
            (Path(folder) / name).write_bytes(code)
        output = Path(folder) / "cpu.so"
        objects = [str(Path(folder) / name) for name in named]
        _run([compiler, *_LINK_FLAGS, *objects, "-o", str(output), *_LIBRARIES], "link the CPU kernels")
        return output.read_bytes()


@lru_cache(maxsize=2)
def _stitch_objects(compiler: str) -> dict[str, bytes]:
    """The stitch's object files, which all modules have in common; no kernel's symbol holds a dot."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for source in STITCH_SOURCES:
            output = Path(folder) / source.name
            _run([compiler, *_COMPILE_FLAGS, "-c", str(source), "-o", str(output)], f"compile {source.name}")
            found[f"{source.name}.o"] = output.read_bytes()
        return found


def _run(command: list[str], task: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"it ends with status {result.returncode}"])[-1]
        raise ToolchainError(f"{command[0]} cannot {task}: {reason}")


def c_compiler() -> str:
    """Path of the C compiler: ``$CC``, ``cc``, ``gcc`` or ``clang``."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise ToolchainError("no C compiler (cc, gcc or clang) is installed; try `apt install gcc libc6-dev`, or set CC")
