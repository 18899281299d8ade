"""The rooms of the house: who may import whom, so that data flows one way, and no rings of files."""

import ast
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "tvm_coexec": ROOT / "tvm_coexec",
    "tvm_coexec.rpc": ROOT / "rpc",
    "tvm_coexec.schedules": ROOT / "schedules",
}

BASIS = {"cache", "errors", "files", "layers", "processes", "version"}
"""What every room may use: the vocabulary, and one way each to fail, to write files, to keep them, to start Python."""

MAY_IMPORT = {
    "layers": set(),
    "machine": set(),
    "opencl": {"machine"},
    "schedules": set(),
    "graph": set(),
    "frontends": {"graph", "schedules"},
    "module": {"graph", "machine"},
    "timing": {"module"},
    "profile": {"graph", "planning"},
    "prediction": {"profile", "graph", "schedules"},
    "planning": {"prediction", "profile", "graph", "schedules"},
    "compiler": {"planning", "graph", "schedules", "module", "runtime", "machine"},
    "runtime": {"module", "graph", "planning", "timing", "verification", "machine", "opencl", "bench"},
    "verification": {"runtime", "timing", "module", "graph", "schedules", "frontends", "compiler"},
    "bench": {"runtime", "timing", "machine", "opencl"},
    "report": {"runtime", "timing", "module", "planning"},
    "rpc": {
        "runtime",
        "timing",
        "opencl",
        "profile",
        "bench",
        "cli",
        "module",
        "compiler",
        "verification",
        "machine",
    },
    "tuning": {
        "planning",
        "prediction",
        "profile",
        "graph",
        "schedules",
        "compiler",
        "runtime",
        "rpc",
        "frontends",
        "machine",
        "opencl",
    },
}
"""The rooms below ``api`` and ``cli``, which may use all others."""

ONLY = {
    ("profile", "planning"): {"planning.plan"},  # a trial run keeps the plan that it ran by, which is data
    ("runtime", "planning"): {"planning.plan"},  # a module carries its plan
    ("runtime", "verification"): {"verification.checking"},  # what measures a layer checks it where it runs
    ("runtime", "bench"): {"bench.workers"},  # a CPU device that plays the GPU is opened like any other
    ("rpc", "compiler"): {
        "compiler.target",
        "compiler.toolchain",
    },  # the C runtime is built for a device and sent there
    ("rpc", "verification"): {"verification.checking"},  # of what a device without our code computes
    ("rpc", "cli"): {"cli", "cli.options", "cli.streams"},  # a device server is a program of its own
    ("compiler", "runtime"): {"runtime.library"},  # C sources that are linked
    ("verification", "compiler"): {"compiler.target", "compiler.packaging"},
}
"""Where a room may use only some files of another."""


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


MODULES = modules()


@cache
def imports(name: str) -> list[str]:
    """Modules of the product that a module imports anywhere, those for type checkers alone too."""
    path, found = MODULES[name], []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        parts = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        base = parts[: len(parts) - node.level + 1] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            target = f"{source}.{alias.name}"
            if target in MODULES or source in MODULES:
                found.append(target if target in MODULES else source)
    return found


def room(name: str) -> str:
    return [*name.split("."), "root"][1]


@pytest.mark.parametrize("importer", MAY_IMPORT)
def test_rooms_import_only_what_comes_before_them(importer: str) -> None:
    wrong = []
    for name in MODULES:
        for target in imports(name) if room(name) == importer else ():
            other, short = room(target), target.removeprefix("tvm_coexec.")
            allowed = {importer} | BASIS | MAY_IMPORT[importer] if importer != "layers" else {"layers", "errors"}
            if other not in allowed or short not in ONLY.get((importer, other), {short}):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_every_room_has_its_rules() -> None:
    rooms = {room(name) for name, path in MODULES.items() if path.parent != FOLDERS["tvm_coexec"]}
    assert rooms - {"cli"} == set(MAY_IMPORT)


def outside_imports(path: Path) -> set[str]:
    """What a file imports of others' packages and of Python's own, by their first names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("name", ["layers", "graph", "schedules", "prediction", "planning"])
def test_planning_asks_nothing_of_this_machine(name: str) -> None:
    """A plan for a device elsewhere is the same wherever it is made: what counts is in the device's facts."""
    of_machine = {"ctypes", "multiprocessing", "os", "platform", "psutil", "pyopencl", "socket", "subprocess"}
    files = {module: path for module, path in MODULES.items() if room(module) == name}
    assert files and not {module for module, path in files.items() if outside_imports(path) & of_machine}


def in_rings(edges: Mapping[str, set[str]]) -> set[str]:
    """What is reached from itself."""

    def reached_from(start: str) -> set[str]:
        found: set[str] = set()
        todo = list(edges[start])
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += edges[name]
        return found

    return {name for name in edges if name in reached_from(name)}


def test_no_file_is_imported_by_what_it_imports() -> None:
    assert not in_rings({name: set(imports(name)) - {name} for name in MODULES})


def test_the_readme_of_the_tests_names_none_that_are_not_there() -> None:
    folder = Path(__file__).parent
    named = re.findall(r"`([\w*]+\.py)`", (folder / "README.md").read_text())
    assert len(named) > 10 and not [name for name in named if not list(folder.glob(name))]


@pytest.mark.parametrize("name", sorted([*MAY_IMPORT, "cli"]))
def test_the_readme_of_a_room_names_its_files_and_none_that_are_not_there(name: str) -> None:
    folder = FOLDERS.get(f"tvm_coexec.{name}", FOLDERS["tvm_coexec"] / name)
    named = re.findall(r"`([\w./*]+\.(?:py|c|h))`", (folder / "README.md").read_text())
    assert not [file for file in named if not (list(folder.rglob(file)) or (FOLDERS["tvm_coexec"] / file).exists())]
    files = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    assert not {file for file in files if not any(fnmatch(file, pattern) for pattern in named)}
