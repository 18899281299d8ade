"""Checks a choice of a device in a process of its own: the one that asks starts no driver, and may fork afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from tvm_coexec.errors import CoexecError, DeviceError, last_line
from tvm_coexec.processes import python

from .choice import DeviceChoice


def check_apart(choice: DeviceChoice) -> dict[str, Any]:
    """Refuse a choice as :meth:`DeviceChoice.check` does, and return what that returns.

    Raises
    ------
    DeviceError
        The device is missing or ambiguous, or lacks what is asked of it; or the process ended before it could tell.
    """
    asked = subprocess.run(
        python(__name__),
        input=json.dumps(asdict(choice)),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # Ctrl-C in a terminal is for the process that asks, which then ends this one
    )
    if asked.returncode > 0:
        reason = (asked.stderr.strip() or "it says nothing").splitlines()[-1]
        raise DeviceError(f"the process that looks for OpenCL devices fails: {reason}")
    if asked.returncode:
        raise DeviceError(
            f"an OpenCL driver ends the process that asks for its devices (signal {-asked.returncode});"
            " `tvm-coexec doctor` names the drivers"
        )
    sys.stderr.write(asked.stderr)
    answer = json.loads(asked.stdout)
    if "refusal" in answer:
        raise DeviceError(answer["refusal"])
    facts: dict[str, Any] = answer["facts"]
    return facts


def main() -> None:
    """Read a choice from standard input, and write the facts or the refusal."""
    choice = DeviceChoice.from_json(json.load(sys.stdin))
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what drivers print is no part of the answer
        try:
            answer: dict[str, Any] = {"facts": choice.check()}
        except CoexecError as error:
            answer = {"refusal": last_line(error)}
        json.dump(answer, answers)


if __name__ == "__main__":
    main()
