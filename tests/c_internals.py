"""The C library with all that its files share among themselves, for tests of single parts."""

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tvm_coexec.compiler.toolchain import c_compiler
from tvm_coexec.runtime.library import SOURCE_FOLDER

STRICT = ("-std=c11", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror")


@cache
def internals() -> ctypes.CDLL:
    """The library, in which every function and constant has a name."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "internals.so"
        sources = map(str, sorted(SOURCE_FOLDER.glob("*.c")))
        subprocess.run([c_compiler(), *STRICT, *sources, "-o", str(built), "-ldl", "-lm"], check=True)
        return ctypes.CDLL(str(built))


def text_of(name: str) -> str:
    """A string constant."""
    first = ctypes.c_char.in_dll(internals(), name)
    return ctypes.string_at(ctypes.addressof(first)).decode()
