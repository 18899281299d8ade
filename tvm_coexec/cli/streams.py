"""Standard streams that are closed, or that nobody can write to any more, end no command."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any


@contextmanager
def usable_streams() -> Iterator[None]:
    """Let standard streams that are closed lead nowhere, and drop what the standard error does not take.

    Progress and warnings are not worth a command: its terminal may be gone, or the disk of its log be full.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file that is opened gets this number, and whatever a library prints
            os.open(os.devnull, os.O_RDWR)  # which gets it now: lower ones are open
            os.set_inheritable(descriptor, True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 # as long as this process lives
    with redirect_stderr(_Dropping(sys.stderr)):
        yield


class _Dropping:
    """Acts as another stream does, but drops what that cannot write."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
