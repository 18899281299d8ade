"""Competing work for tests: reproducible, and as much of it as was asked for."""

import itertools
import time

import disturb
import numpy as np
import pytest


def test_a_seed_gives_the_same_bursts_and_every_core_its_own() -> None:
    first, again, other, core = (
        list(itertools.islice(disturb.bursts(*arguments, 0.3), 50)) for arguments in ((1, 0), (1, 0), (2, 0), (1, 1))
    )
    assert first == again
    assert first not in (other, core)
    assert {burst.kind for burst in first} == set(disturb.KINDS)
    assert all(disturb.SHORTEST_S <= burst.busy_s <= disturb.LONGEST_S for burst in first)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_core_is_busy_for_the_share_that_was_asked_for(share: float) -> None:
    found = list(itertools.islice(disturb.bursts(3, 0, share), 4000))
    busy_s, idle_s = (sum(getattr(burst, name) for burst in found) for name in ("busy_s", "pause_s"))
    assert busy_s / (busy_s + idle_s) == pytest.approx(share, rel=0.1)


@pytest.mark.parametrize("kind", disturb.KINDS)
def test_work_ends_when_its_time_has_come(kind: str) -> None:
    begin_s = time.monotonic()
    disturb.work(kind, begin_s + 0.02, np.ones(1 << 16, np.float32))
    assert time.monotonic() - begin_s >= 0.02


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--cores", "x"], "numbers with commas"),
        (["--cores", "99999"], "no core 99999"),
        (["--share", "1"], "between 0 and 1"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        disturb.main(arguments)
    assert message in capsys.readouterr().err
