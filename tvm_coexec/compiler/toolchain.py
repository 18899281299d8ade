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

_CFLAGS = ("-std=c11", "-O2", "-fPIC", "-pthread", "-shared", "-fvisibility=default")


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
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for kernel in kernels:
            objects.append(Path(folder) / f"{kernel.symbol}.o")
            objects[-1].write_bytes(kernel.code)
        output = Path(folder) / "cpu.so"
        command = [compiler, *_CFLAGS, *map(str, (*STITCH_SOURCES, *objects)), "-o", str(output), "-ldl", "-lm"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or [f"it ends with status {result.returncode}"])[-1]
            raise ToolchainError(f"{compiler} cannot link the CPU kernels: {reason}")
        return output.read_bytes()


def c_compiler() -> str:
    """Path of the C compiler: ``$CC``, ``cc``, ``gcc`` or ``clang``."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise ToolchainError("no C compiler (cc, gcc or clang) is installed; try `apt install gcc libc6-dev`, or set CC")
