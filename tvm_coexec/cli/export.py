"""Write a C project that runs a module in an application, without Python.

The folder gets an example application, the runtime's sources, the module, and a README with the lines that build them
for Linux, for arm64 and by Android's NDK.
"""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
examples:
  tvm-coexec export model.coexec --c-project app
  cmake -S app -B app/build && cmake --build app/build && app/build/example app/model.coexec
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("module", metavar="MODULE", help="made by `tvm-coexec build`")
    parser.add_argument(
        "--c-project", type=Path, required=True, metavar="DIR", help="the folder to write, new or empty"
    )


def run(*, module: str, c_project: Path) -> int:
    from tvm_coexec.compiler.c_project import write_c_project

    write_c_project(module, c_project)
    print(f"{c_project}: cmake -S {c_project} -B {c_project}/build && cmake --build {c_project}/build")
    return 0
