"""A process that tries one seed after the other, so that its death, or its silence, ends no more than a trial.

Run as a script, this file is that process: ``trial_process.py CAMPAIGN`` reads a seed a line and answers with JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import traceback
from pathlib import Path

from outcomes import Outcome

from tvm_coexec.errors import CoexecError


class TrialProcess:
    """A process that tries seeds; a new one takes its place when it dies or hangs."""

    def __init__(self, campaign: str, longest_s: float) -> None:
        self._campaign, self._longest_s = campaign, longest_s
        self._process: subprocess.Popen[str] | None = None

    def trial(self, seed: int) -> Outcome:
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died, which its answer tells
            print(seed, file=process.stdin, flush=True)
        if not select.select([process.stdout], [], [], self._longest_s)[0]:
            self.close()
            return Outcome("hung", f"no answer within {self._longest_s:g} s")
        line = process.stdout.readline()
        if not line:
            status = process.wait()
            self.close()
            return Outcome("killed", f"the process ended with status {status}")
        return Outcome(**json.loads(line))

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, __file__, self._campaign]
            tests = Path(__file__).parent.parent
            folders = [str(tests), str(tests.parent / "scripts"), os.environ.get("PYTHONPATH", "")]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
            )
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def main() -> None:
    campaign = importlib.import_module(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print does not disturb the answers
    for line in sys.stdin:
        try:
            outcome = campaign.trial(int(line))
        except CoexecError as error:
            outcome = Outcome("raised", f"{type(error).__name__}: {error}")
        except Exception as error:  # what a campaign is there to find
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            outcome = Outcome("raised", f"{reason[:600]} ({where.filename}:{where.lineno})")
        print(json.dumps({"kind": outcome.kind, "reason": outcome.reason}), file=answers)


if __name__ == "__main__":
    main()
