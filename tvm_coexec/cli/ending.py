"""Ends a command that a signal tells to end, wherever the signal arrives."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ENDS = (KeyboardInterrupt, SystemExit)
_AGAIN_S = 0.5
"""A library may drop the exception of a signal: it is raised again so often, which a user takes for at once."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGINT into a ``KeyboardInterrupt``, SIGTERM and SIGHUP into a ``SystemExit``; nothing is left half done.

    The last comes where a terminal is closed or its connection breaks. Python drops what is raised while it calls a
    finalizer or a function for C, and so do some libraries: where none is on its way any more after a while, it is
    raised again.
    """
    if threading.current_thread() is not threading.main_thread():  # of which alone Python lets signals be caught
        yield
        return
    told: list[int] = []
    before: dict[int, Any] = {}

    def end(number: int, _: object) -> None:
        told.append(number)
        before.setdefault(signal.SIGALRM, signal.signal(signal.SIGALRM, look_again))
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
        raise _end_by(number)

    def look_again(_number: int, _: object) -> None:
        if not _is_on_its_way():
            end(told[-1], None)

    def drop(lost: Any) -> None:
        if not issubclass(lost.exc_type, _ENDS):
            unraisable(lost)

    unraisable, sys.unraisablehook = sys.unraisablehook, drop
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell sets it for what runs in the background
            before[number] = signal.signal(number, end)
    try:
        yield
    except Exception as error:
        if told:  # TVM, for one, makes an error without a text of it
            raise _end_by(told[-1]) from error
        raise
    finally:
        if told:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for own, handler in before.items():
            signal.signal(own, handler)
        sys.unraisablehook = unraisable


def _end_by(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _is_on_its_way() -> bool:
    """Whether the command is just being ended, which may take its time."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, _ENDS):
        error = error.__context__
    return error is not None
