"""What the C library has opened, kept open for as long as somebody uses it."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable

from .library import library


class Handle:
    """Something that the C library has opened: closed when nobody refers to it, or what was opened in it, any more."""

    def __init__(self, kind: str, pointer: ctypes.c_void_p, within: Handle | None = None) -> None:
        self.pointer = pointer.value
        close = getattr(library(), f"coexec_{kind}_close")
        weakref.finalize(self, _close, close, self.pointer, within, os.getpid())


def _close(close: Callable[[int | None], None], pointer: int | None, _within: Handle | None, process: int) -> None:
    """Close something before what it lies within; a fork has no threads to stop, and leaves all as it is."""
    if os.getpid() == process:
        close(pointer)
