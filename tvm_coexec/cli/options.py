"""Options that several subcommands share."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from tvm_coexec.errors import InputError

_MOST_CORES = 1 << 16
"""More than Linux can be built for (8192), so that a slip of the hand makes no list of billions of cores."""
_MOST_DIGITS = 18
"""Any such number fits 64 bits; Python itself refuses thousands of digits by a traceback."""


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, passed on as ``device``: a name or None."""
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="any unambiguous part of a device's name, as `tvm-coexec devices` prints it "
        "(default: a GPU, else PoCL, else Intel's CPU runtime)",
    )


def add_core_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cpu-cores`` and ``--gpu-cores``, passed on as ``cpu_cores`` and ``gpu_cores``: a tuple or None."""
    parser.add_argument(
        "--cpu-cores", metavar="LIST", type=parse_cores, help="cores of the CPU's side, such as 1 or 0,4-7"
    )
    parser.add_argument(
        "--gpu-cores",
        metavar="LIST",
        type=parse_cores,
        help="cores on which an OpenCL CPU device works, when one plays the GPU (default: half of the machine's)",
    )


def add_tracker_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--tracker`` and ``--key``, passed on as ``tracker`` and ``key``: texts or None."""
    parser.add_argument(
        "--tracker", metavar="HOST:PORT", help="an RPC tracker; by default one is started on loopback for this machine"
    )
    parser.add_argument("--key", help="the device's key at the tracker")


def add_timeout_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--timeout``, passed on as ``timeout``: seconds."""
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="S", help="bound on every wait (default: %(default)g s)"
    )


def add_given_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--shape`` and ``--value``, passed on as ``shapes`` and ``values``: dicts from inputs to what they have."""
    parser.add_argument(
        "--shape",
        action=_AddShape,
        dest="shapes",
        default={},
        metavar="INPUT=SIZES",
        help="shape of an input whose dimensions the model leaves open, such as x=1,3,320,320; may be repeated",
    )
    parser.add_argument(
        "--value",
        action=_AddValue,
        dest="values",
        default={},
        metavar="INPUT=NUMBERS",
        help="what an input always is, which is a constant then: one number for all its elements, such as rate=16000, "
        "or as many as it has, in order, such as size=480,640; may be repeated",
    )


class _AddValue(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        name, equals, numbers = str(values).rpartition("=")
        try:
            read = [_number(number.strip()) for number in numbers.split(",")]
        except ValueError:
            read = []
        if not equals or not read:
            raise argparse.ArgumentError(
                self, f"cannot read {values!r}; write an input's name and numbers, as rate=16000"
            )
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), name: read if len(read) > 1 else read[0]})


class _AddShape(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        name, equals, sizes = str(values).rpartition("=")
        if not equals or not all(_is_whole(size.strip()) for size in sizes.split(",")):
            raise argparse.ArgumentError(self, f"cannot read {values!r}; write an input's name and sizes, as x=1,3,320")
        shape = tuple(int(size) for size in sizes.split(","))
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), name: shape})


def check_out(path: Path | None, option: str = "--out") -> None:
    """Refuse a file that cannot be written before anything is computed for it; ``option`` names it."""
    if path is None:
        return
    reason, folder = None, Path(os.path.realpath(path)).parent  # of a link, where it leads
    if path.is_dir():
        reason = "it is a directory"
    elif not folder.is_dir():
        reason = f"there is no directory {folder}"
    elif not path.exists() and not os.access(folder, os.W_OK):
        reason = f"nothing can be written in {folder}"
    if reason is not None:
        raise InputError(f"{option} {path}: {reason}; name a file in a directory that exists and can be written to")


def whole_number(text: str) -> int:
    """Read a number that is not negative."""
    if not _is_whole(text):
        raise argparse.ArgumentTypeError(f"{text[:_MOST_DIGITS]!r} is no whole number of {_MOST_DIGITS} digits at most")
    return int(text)


def number_of_runs(text: str) -> int:
    """Read how often something is run, at least once."""
    from tvm_coexec.timing.layers import MOST_RUNS

    if not _is_whole(text) or not 1 <= int(text) <= MOST_RUNS:
        raise argparse.ArgumentTypeError(f"{text[:_MOST_DIGITS]!r} is no whole number from 1 to {MOST_RUNS}")
    return int(text)


def _is_whole(text: str) -> bool:
    """Whether a text is a number of digits alone, and not of so many that Python refuses to read them."""
    return text.isdecimal() and len(text) <= _MOST_DIGITS


def _number(text: str) -> float:
    """A whole number of 64 bits as it is, since floats do not hold all; else a float."""
    if re.fullmatch(r"-?\d{1,20}", text) and -(2**63) <= int(text) < 2**64:
        return int(text)
    return float(text)


def parse_cores(text: str) -> tuple[int, ...]:
    """Read ``0``, ``0,2`` or ``0,4-7``."""
    cores: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise argparse.ArgumentTypeError(f"cannot read {text!r}; write core numbers such as 0, or 0,4-7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise argparse.ArgumentTypeError(f"{part.strip()!r} counts down; write the smaller core first")
        if last >= _MOST_CORES:
            raise argparse.ArgumentTypeError(f"no machine has a core {last}; `nproc --all` tells how many there are")
        cores.extend(range(first, last + 1))
    return tuple(cores)
