"""Each subcommand of the command line is a module here, loaded when it is named; heavy imports wait until it runs.

A subcommand's module has a docstring, whose first line is its summary; ``EXAMPLES``, the end of its help;
``add_arguments(parser)``; and ``run(**values)``, which gets plain values and returns the exit status.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import select
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from tvm_coexec.errors import CoexecError
from tvm_coexec.version import __version__

from .ending import ended_by_signals
from .streams import usable_streams

COMMANDS = (
    "devices",
    "doctor",
    "tune",
    "profile",
    "plan",
    "build",
    "check",
    "run",
    "bench",
    "report",
    "inspect",
    "export",
)

_OUTPUT = 1
"""The file descriptor of the standard output."""

_NO_TEMPORARY_FOLDER = "No usable temporary directory"
"""How Python's complaint begins, where there is none or the disk is full."""

_EXAMPLES = """\
examples:
  tvm-coexec doctor              check that everything works on this machine
  tvm-coexec devices             see the OpenCL devices, and how each would synchronise with the CPU
  tvm-coexec tune --device pocl --out profile
  tvm-coexec build model.onnx --profile profile --out model.coexec
  tvm-coexec run model.coexec --benchmark 100
  tvm-coexec COMMAND --help      see what a command takes
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 1 for an error that the user can repair, 2 for a wrong call."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_where: f"tvm-coexec: warning: {message}\n"
    try:
        with usable_streams():
            return _main(argv)
    finally:
        warnings.formatwarning = before


def _main(argv: Sequence[str] | None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a layer's name may have what the terminal cannot show
    try:
        with ended_by_signals():
            values = vars(_parser().parse_args(argv))
            command = _module(values.pop("command"))
            status = int(command.run(**values))
            _flush()  # so that what cannot be written is an error here, not while the interpreter ends
            return status
    except (CoexecError, OSError, MemoryError) as error:  # what the system refuses is no bug of ours
        gone = isinstance(error, BrokenPipeError) and _reader_is_gone()
        _drop_what_cannot_be_written()
        if gone:
            return 128 + signal.SIGPIPE  # as a program ends that the signal kills, such as `yes | head`
        print(f"tvm-coexec: error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tvm-coexec: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def one_line(error: Exception) -> str:
    """An error's message without line breaks; where a file is at fault, with its name first and a remedy."""
    text = str(error)
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.filename is not None and not isinstance(error, CoexecError):
        remedy = "free some space there" if is_full else "check the path, and who may read and write there"
        text = f"{os.fspath(error.filename)} cannot be used ({error.strerror}); {remedy}"
    elif isinstance(error, FileNotFoundError) and str(error.strerror).startswith(_NO_TEMPORARY_FOLDER):
        text = f"{error.strerror}; free some space there, or name a folder that can be written to by TMPDIR"
    elif isinstance(error, OSError) and is_full:
        text = f"the output or a temporary file cannot be written ({error.strerror}); free some space there"
    elif isinstance(error, MemoryError):
        text = f"memory does not suffice ({text or 'no more is given'}); end other programs, or use a smaller model"
    return " ".join(text.split())


def _flush() -> None:
    print(end="", flush=True)  # unlike the stream's own method, where the standard output is closed as well


def _drop_what_cannot_be_written() -> None:
    """Else the interpreter tries again when it ends, complains, and changes the exit status."""
    try:
        _flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), _OUTPUT)


def _reader_is_gone() -> bool:
    """Whether nobody reads the standard output any more, as after `| head`.

    A connection to a phone breaks with the same error, which has to be told.
    """
    poll = select.poll()
    poll.register(_OUTPUT, 0)  # errors are always reported
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong with a call in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tvm-coexec",
        description="Run one neural network on the CPU and the GPU of one device at the same time.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tvm-coexec {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = _module(name)
        summary, _, rest = (module.__doc__ or "").strip().partition("\n")
        subparser = subparsers.add_parser(
            name,
            help=summary[:1].lower() + summary[1:].rstrip("."),
            description=f"{summary}\n{rest}",
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
    return parser


def _module(name: str) -> Any:
    return importlib.import_module(f".{name}", __name__)
