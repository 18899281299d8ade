"""Show what a profile knows: its device, what was measured when and of which origin, and how well it predicts.

Samples of another driver, or of kernels of an older release, are kept, but only current ones are learned from.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvm_coexec.profile import Profile
    from tvm_coexec.profile.store import Run

EXAMPLES = """\
examples:
  tvm-coexec profile show phone
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("show",), help="show: print the profile as a table")
    parser.add_argument("profile", type=Path, metavar="DIR", help="made by `tvm-coexec tune`")


def run(*, action: str, profile: Path) -> int:
    from tvm_coexec.profile import Profile

    with Profile.open(profile) as opened:
        print("\n".join(_shown(opened)))
    return 0


def _shown(profile: Profile) -> list[str]:
    from tvm_coexec.prediction.evaluation import FULL

    facts, runs = profile.facts, profile.runs()
    lines = [
        f"device     {facts.get('label', facts['name'])}",
        f"cpu        {facts.get('cpu_model', 'unknown')}",
        f"mechanism  {facts['mechanism']}",
        f"tuned for  {', '.join(profile.families) or 'nothing to the end'}",
        "",
        *_table(runs),
        *_changes(runs),
    ]
    lines += _reads((profile.planning or {}).get("reads", {}))
    lines += [f"{count} current failures: {reason}" for reason, count in profile.failures().items()]
    for side, report in (profile.report or {}).items():
        score = report["scores"][FULL]
        lines.append(
            f"{side}: held-out halves are predicted to {score['mape_percent']:.1f} % in the mean, "
            f"{score['within_10_percent']:.0f} % of them within 10 %; "
            f"{report['inside_percent']:.0f} % lay in the interval predicted"
        )
    return lines


def _reads(reads: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """How fast either side reads what it has read, alone and while the other reads: a cache ends where it slows."""
    if not reads:
        return []
    rows: list[tuple[str, ...]] = [("reads of", "cpu", "gpu", "cpu while gpu reads", "gpu while cpu reads")]
    ways = [(side, way) for way in ("alone", "concurrent") for side in ("cpu", "gpu")]
    for number, amount_bytes in enumerate(reads["cpu"]["amount_bytes"]):
        rates = (f"{reads[side][way][number] / 1e3:.1f} GB/s" for side, way in ways)
        rows.append((f"{amount_bytes / (1 << 20):.3g} MiB", *rates))
    return _aligned(rows)


def _table(runs: Sequence[Run]) -> list[str]:
    rows = [("started", "driver", "kernels", "samples", "failures", "counts")]
    for one in runs:
        counts = "yes" if one.is_current else "no"
        driver = str(one.facts.get("driver_version"))
        rows.append((one.started[:19], driver, str(one.generator), str(one.samples), str(one.failures), counts))
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _changes(runs: Sequence[Run]) -> list[str]:
    """What a changed driver or version of the kernels did to the samples before it."""
    current, older = (sum(one.samples for one in runs if one.is_current == which) for which in (True, False))
    if not older:
        return [f"all {current} samples count"]
    return [f"{current} samples count; {older} are of another driver or of older kernels and are measured again"]
