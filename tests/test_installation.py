"""What is installed: the project's list of packages misses none."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs Python 3.11, whose library reads TOML")
def test_every_package_is_listed() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for top in ("tvm_coexec", "schedules", "rpc") for path in (ROOT / top).rglob("__init__.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    listed = {settings["package-dir"].get(name, name).replace("/", ".") for name in settings["packages"]}
    assert listed == names
