"""Users meet these errors. Each message names the cause and the remedy, in that order."""

from __future__ import annotations

import re

_PRINTED_OPERATOR = re.compile(r'\bir\.Op\(.*?name="([\w.]+)".*?support_level=\d+\)')
"""An operator as TVM prints it in the middle of a sentence, with all that it knows of it."""


class CoexecError(Exception):
    """Base of every error that a user can cause or repair; the command line prints it as one line."""


class DeviceError(CoexecError):
    """An OpenCL device is missing, ambiguous, or lacks what was asked of it."""


class ModelError(CoexecError):
    """A model holds something that cannot be built: the operator and its node are named."""


class InputError(CoexecError):
    """A run-time argument has the wrong name, shape or type."""


class KernelError(CoexecError):
    """A kernel does not compile, or computes a wrong result."""


class ToolchainError(CoexecError):
    """The C compiler, or the TVM compiler, is missing or refuses its input."""


class SyncTimeoutError(CoexecError):
    """One processor waited for the other for longer than the bound; names the layer and the side."""


class FileFormatError(CoexecError):
    """A module, plan or profile file is damaged, of another version, or no such file at all."""


class MeasurementError(CoexecError):
    """A measuring session failed: tracker out of reach, device lost, or a kernel that hangs."""


def first_line(error: Exception) -> str:
    """The line of an error's message that names the cause; OpenCL's go on with build logs."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def cannot_read(path: object, error: OSError) -> str:
    """Say that a file is there and cannot be read, with the remedy."""
    return f"{path} cannot be read ({error.strerror}); check the path, and who may read there"


def readable(name: str, longest: int = 80) -> str:
    """What a model calls a part of it, for a line of text: without control characters, and of a bearable length."""
    shown = name
    if not name.isprintable():
        shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def in_one_line(error: object, most: int = 400) -> str:
    """An error's whole message without line breaks, cut where it goes on for long."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[:most]} ..."


def last_line(error: Exception, otherwise: str = "no reason given") -> str:
    """Find the line of an error's message that names the cause; compilers and TVM put a trace in front of it."""
    lines = [line for line in str(error).strip().splitlines() if any(map(str.isalnum, line))]
    named = [line for line in lines if line.startswith("error: ")]  # TVM's parser shows the place below
    return _PRINTED_OPERATOR.sub(r"\1", (named or lines)[-1]) if lines else otherwise
