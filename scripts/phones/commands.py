"""Runs the system's commands that phones are made of, each error one line with the remedy."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from tvm_coexec.errors import InputError

PACKAGES = {"mmdebstrap": "mmdebstrap", "ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
"""Debian's package of each command that is needed."""


def check_parts() -> None:
    """Refuse to begin on a machine that lacks a part."""
    if os.uname().machine != "x86_64":
        raise InputError(f"emulated phones are made on x86-64 Linux, and this is {os.uname().machine}; use such a one")
    if os.geteuid() != 0:
        raise InputError("emulated phones need root, for namespaces and mounts; run this with sudo")
    missing = sorted({package for command, package in PACKAGES.items() if shutil.which(command) is None})
    if missing:
        raise InputError(f"emulated phones need {', '.join(missing)}; run: apt-get install {' '.join(missing)}")


def run(command: Sequence[str], task: str) -> str:
    """Return what a command prints; a command that fails is an error that names the task.

    Parameters
    ----------
    task
        Completes "cannot …".
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if result.returncode:
        lines = [line.strip() for line in (result.stderr or result.stdout).splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "no reason given")
        raise InputError(f"cannot {task}: {command[0]} says: {reason}")
    return result.stdout
