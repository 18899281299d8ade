"""Opaque layers keep their programs as text, of which the modules are found again without TVM's slow parser."""

from __future__ import annotations

import threading
from functools import lru_cache

import tvm
from tvm import ir

_KEPT = 1024
"""So many modules are kept, the newest: a network of many different operators has a few hundred."""

_modules: dict[str, ir.IRModule] = {}
_changing = threading.Lock()
"""Held while modules are added and dropped: networks may be read in several threads."""


def as_text(module: ir.IRModule) -> str:
    """Write a program, which nobody may change from now on: it is what :func:`parsed` gives for the text."""
    text: str = module.script(show_meta=True)
    with _changing:
        _modules.setdefault(text, module)
        while len(_modules) > _KEPT:
            del _modules[next(iter(_modules))]
    return text


def parsed(text: str) -> ir.IRModule:
    """Give the module of a text, which its reader must not change."""
    module = _modules.get(text)
    return _read(text) if module is None else module


@lru_cache(maxsize=256)
def _read(text: str) -> ir.IRModule:
    """Have TVM read a text that this process has not written, which takes half a second for a recurrent operator."""
    return tvm.script.from_source(text)
