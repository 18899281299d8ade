"""What a trial of a campaign may end in."""

from __future__ import annotations

from dataclasses import dataclass

GOOD = ("right", "refused")
"""A refusal is one clear line; how many there may be is for the campaign to say."""

BAD = ("wrong", "raised", "killed", "hung")
"""A wrong result, an error that is none of ours, a process that died, one that did not answer."""


@dataclass(frozen=True)
class Outcome:
    """One of ``GOOD`` or ``BAD``, and the reason."""

    kind: str
    reason: str = ""
