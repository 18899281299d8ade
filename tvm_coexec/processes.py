"""Starts Python in processes that import what this one does, whatever lies in the folder that the user stands in.

``python -m`` and ``python -c`` look for modules in that folder before all others, where a ``secrets.py`` is the user's
and not Python's. Python can be told not to only from version 3.11 on.
"""

from __future__ import annotations

import os
import sys

_RUN = (
    "import sys; sys.path[:] = {path!r}; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module as ``python -m`` does, but for where modules are looked for."""
    return [sys.executable, "-c", _RUN.format(path=search_path()), module, *arguments]


def search_path() -> list[str]:
    """Where this process looks for modules, with the folders of the user's own files last if this package is not there.

    These are the one that the user stands in, and the one of the program that runs: what is sent to a process may be
    defined there, but Python and its packages have their own places.
    """
    package = _folder(f"{__file__}/../..")
    program = getattr(sys.modules.get("__main__"), "__file__", None)
    own = {_folder(""), _folder(f"{program}/.." if program else "")} - {package}
    return sorted((entry for entry in sys.path if isinstance(entry, str)), key=lambda entry: _folder(entry) in own)


def _folder(path: str) -> str:
    """Where a path leads; nowhere else than it says if the folder in which the user stands is gone."""
    try:
        return os.path.realpath(path)
    except OSError:
        return path
