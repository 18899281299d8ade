"""Builds the C library that runs modules; pyproject.toml says all else."""

from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("tvm_coexec/runtime/libcoexec")

setup(
    ext_modules=[
        Extension(
            "tvm_coexec.runtime.libcoexec",
            [str(source) for source in sorted(FOLDER.glob("*.c"))],
            depends=[str(header) for header in sorted(FOLDER.glob("*.h"))],
            extra_compile_args=["-std=c11", "-O2", "-pthread", "-fvisibility=hidden"],
            extra_link_args=["-pthread", "-Wl,-z,max-page-size=16384"],
            libraries=["dl", "m"],
            py_limited_api=True,
        )
    ]
)
