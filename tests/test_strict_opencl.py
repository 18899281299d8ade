"""Kernels keep to the letter of OpenCL C: clang compiles them with every extension off, where drivers are generous."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from slow import slow_except

from tvm_coexec import schedules
from tvm_coexec.compiler.entry_points import add_steps
from tvm_coexec.compiler.kernels import compile_half
from tvm_coexec.compiler.target import target_for
from tvm_coexec.layers import AnyLayer, Conv2d, Linear
from tvm_coexec.module.manifest import LaunchSpec
from tvm_coexec.runtime.library import SOURCE_FOLDER

CLANG = next(filter(None, map(shutil.which, ["clang", *(f"clang-{number}" for number in range(22, 13, -1))])), None)
pytestmark = pytest.mark.skipif(CLANG is None, reason="needs clang, which PoCL's packages bring along")

PHONE = {
    "machine": "aarch64",
    "cpu_features": ["asimd"],
    "device_type": "gpu",
    "max_group_size": 256,
    "compute_units": 4,
}
LAYERS: list[AnyLayer] = [
    Linear(9, 70, 100, ("bias", "gelu")),
    Linear(1, 256, 96, ("bias",)),
    Conv2d(9, 9, 40, 64, 3, 1, 1, epilogue=("bias", "residual", "relu")),
    Conv2d(9, 9, 64, 64, 3, 1, 1, groups=64, epilogue=("bias", "relu6")),
    Conv2d(17, 17, 3, 32, 3, 2, 1, epilogue=("bias", "silu")),
]
WIDE_INTEGERS = re.compile(r"\b(u?long\d*|size_t|ptrdiff_t|u?int64_t|double\d*)\b")


def flags_text() -> str:
    """What the C library puts before a module's source, and its own kernels."""
    return "".join(ast.literal_eval(text) for text in re.findall(r'^ +("(?:[^"\\]|\\.)*")', flags_file(), re.MULTILINE))


def flags_file() -> str:
    return (SOURCE_FOLDER / "flags.c").read_text()


def sources(layer: AnyLayer) -> list[str]:
    """The first variant of each implementation, with its entries."""
    target = target_for(PHONE)
    family, found = schedules.family(layer), {}
    for variant in family.variants(layer, "gpu", target.hardware):
        found.setdefault(variant.implementation, variant)
    texts = []
    for variant in found.values():
        kernels = compile_half(layer, "gpu", variant, target)
        launches = [LaunchSpec(kernel.symbol, (), group=kernel.dispatch.group) for kernel in kernels]
        source = "\n".join(dict.fromkeys(kernel.code.decode() for kernel in kernels))
        texts.append(add_steps(source, launches, chains=False).text)
    return texts


def complaints(text: str, standard: str, folder: Path, *options: str) -> str:
    (folder / "kernel.cl").write_text(text)
    strict = ["-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-Wno-unused-variable", "-Wno-unused-parameter"]
    strict += ["-Wno-sign-compare", "-Wno-unused-function", "-Xclang", "-finclude-default-header", "-O0", "-c"]
    where = [
        "-target",
        "spir64-unknown-unknown",
        "-emit-llvm",
        "-o",
        str(folder / "kernel.bc"),
        str(folder / "kernel.cl"),
    ]
    command = [str(CLANG), "-x", "cl", f"-cl-std={standard}", *strict, *options, *where]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_what_is_not_strict_is_complained_of(tmp_path: Path) -> None:
    assert "coexec_wait_for" in flags_text()
    assert "error" in complaints(
        "__kernel void f(__global int* x, int n) { int a[n]; x[0] = a[0]; }", "CL1.2", tmp_path
    )


@pytest.mark.parametrize("layer", slow_except(LAYERS, 0, 3), ids=str)
def test_kernels_with_flags_are_strict_opencl_c(layer: AnyLayer, tmp_path: Path) -> None:
    text = "\n".join([flags_text(), *sources(layer)])
    for standard in ("CL1.2", "CL2.0", "CL3.0"):
        assert not complaints(text, standard, tmp_path), standard
    assert not complaints(text, "CL1.2", tmp_path, "-DCOEXEC_EVENTS")


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_kernels_compute_without_wide_integers_which_the_embedded_profile_lacks(layer: AnyLayer) -> None:
    for text in sources(layer):
        own = text.replace("ulong limit", "")  # the bound of a wait, which is the C library's
        assert not WIDE_INTEGERS.findall(own)
