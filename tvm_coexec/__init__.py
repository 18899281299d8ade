"""Run one neural network on the CPU and the GPU of one device at the same time.

Nothing is imported until it is used, so that importing this package is fast and has no side effects.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import CoexecError
from .version import __version__

if TYPE_CHECKING:
    from .api import build, package
    from .opencl.discovery import list_devices
    from .runtime.device import open_device
    from .runtime.module import Module, load
    from .tuning import tune

_PUBLIC = {
    "Module": ".runtime.module",
    "build": ".api",
    "list_devices": ".opencl.discovery",
    "load": ".runtime.module",
    "open_device": ".runtime.device",
    "package": ".api",
    "tune": ".tuning",
}

__all__ = ["CoexecError", "Module", "__version__", "build", "list_devices", "load", "open_device", "package", "tune"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
