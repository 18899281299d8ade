"""Campaigns see what ends a trial, deaths and silence included, and go on after it."""

from pathlib import Path

import pytest
from trial_process import TrialProcess

TRIALS = """
import os, time
from outcomes import Outcome
from tvm_coexec.errors import ModelError

def trial(seed):
    if seed == 1:
        os.abort()
    if seed == 2:
        time.sleep(60)
    if seed == 3:
        [][3]
    if seed == 4:
        raise ModelError("refused")
    return Outcome("right", str(os.getpid()))
"""


@pytest.mark.parametrize(
    ("seed", "kind", "reason"),
    [
        (1, "killed", "ended with status -6"),
        (2, "hung", "no answer within 3 s"),
        (3, "raised", "IndexError: list index out of range"),
        (4, "raised", "ModelError: refused"),
    ],
)
def test_what_ends_a_trial_is_seen_and_the_next_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, kind: str, reason: str
) -> None:
    (tmp_path / "troublesome.py").write_text(TRIALS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = TrialProcess("troublesome", longest_s=3)
    try:
        first = process.trial(0)
        ended = process.trial(seed)
        after = process.trial(0)
    finally:
        process.close()
    assert ended.kind == kind and reason in ended.reason
    assert first.kind == after.kind == "right"
    assert (first.reason == after.reason) == (kind == "raised")  # the same process, unless it is gone
