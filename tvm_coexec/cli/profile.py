"""Show what a profile knows, merge profiles of one kind of device, or show in what two differ.

show: its device, what was measured when and of which origin, and how well it predicts. Samples of another driver, of
another TVM, or of kernels of an older release are kept, but only current ones are learned from; halves that were
measured again show how times have changed.

merge: what several profiles hold goes into a new one, each sample once, and predictors are trained on all. diff: the
devices' facts that differ, and how the times of halves that both have measured compare.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_coexec.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from tvm_coexec.profile import Profile
    from tvm_coexec.profile.store import Run

EXAMPLES = """\
examples:
  tvm-coexec profile show phone
  tvm-coexec profile merge phone-monday phone-tuesday --out phone
  tvm-coexec profile diff phone-monday phone-tuesday
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("show", "merge", "diff"), help="what to do")
    parser.add_argument("profiles", type=Path, nargs="+", metavar="DIR", help="made by `tvm-coexec tune`")
    parser.add_argument("--out", type=Path, metavar="DIR", help="of merge: the new profile")


def run(*, action: str, profiles: list[Path], out: Path | None) -> int:
    from tvm_coexec.profile import Profile

    _check(action, profiles, out)
    if action == "merge":
        assert out is not None
        return _merge(profiles, out)
    if action == "diff":
        with Profile.open(profiles[0]) as own, Profile.open(profiles[1]) as other:
            print("\n".join(_differences(own, other)))
        return 0
    with Profile.open(profiles[0]) as opened:
        print("\n".join(_shown(opened)))
    return 0


def _check(action: str, profiles: Sequence[Path], out: Path | None) -> None:
    """Refuse what an action does not take."""
    wanted = {"show": "one profile", "merge": "two profiles or more", "diff": "two profiles"}[action]
    fits = {"show": len(profiles) == 1, "merge": len(profiles) >= 2, "diff": len(profiles) == 2}[action]
    if not fits:
        raise InputError(f"`profile {action}` takes {wanted}, {len(profiles)} given")
    if (out is None) == (action == "merge"):
        raise InputError(
            "`profile merge` writes a new profile, and nothing else does; name it by --out with merge alone"
        )


def _merge(profiles: Sequence[Path], out: Path) -> int:
    from tvm_coexec.prediction.evaluation import format_table
    from tvm_coexec.profile import Profile
    from tvm_coexec.profile.merging import merge
    from tvm_coexec.tuning.fitting import fit

    merge(out, profiles)
    with Profile.open(out) as merged:
        evaluations = fit(merged)
        count = sum(one.samples for one in merged.runs())
    print(f"{count} samples\nerrors of the predictors on layers held out of training:\n{format_table(evaluations)}")
    print(f"profile: {out}")
    return 0


def _differences(own: Profile, other: Profile) -> Iterator[str]:
    from tvm_coexec.profile.comparing import changed_facts, time_ratios

    for name, before, after in changed_facts(own.facts, other.facts):
        yield f"{name}: {before} here, {after} there"
    counts = [sum(run.samples for run in one.runs() if run.is_current) for one in (own, other)]
    yield f"samples that count: {counts[0]} here, {counts[1]} there"
    for side, ratios in time_ratios(own.samples(), other.samples()).items():
        if not len(ratios):
            yield f"{side}: no half was measured in both"
            continue
        yield f"{side}: {len(ratios)} halves were measured in both; there they take {_times_as_long(ratios)}"


def _times_as_long(ratios: np.ndarray) -> str:
    import numpy as np

    low, high = np.percentile(ratios, [10, 90])
    mean = np.exp(np.log(ratios).mean())
    return f"{mean:.2f} times as long (geometric mean; 10 %: {low:.2f}, 90 %: {high:.2f})"


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
        *_changes(profile, runs),
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
    rows: list[tuple[str, ...]] = [("started", "driver", "TVM", "kernels", "samples", "failures", "counts")]
    for one in runs:
        counts = "yes" if one.is_current else "no"
        origin = (one.facts.get("driver_version"), one.compiler or "unknown", one.generator)
        rows.append((one.started[:19], *map(str, (*origin, one.samples, one.failures)), counts))
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _changes(profile: Profile, runs: Sequence[Run]) -> list[str]:
    """What another driver, TVM or version of the kernels did to the samples before it, and to the times."""
    from tvm_coexec.profile.comparing import time_ratios

    current, older = (sum(one.samples for one in runs if one.is_current == which) for which in (True, False))
    if not older:
        return [f"all {current} samples count"]
    ratios = time_ratios(profile.samples(are_current=False), profile.samples())
    return [
        f"{current} samples count; {older} are of another driver, TVM or kernels than these and are measured again",
        *(
            f"{side}: {len(own)} halves were measured before as well; now they take {_times_as_long(own)}"
            for side, own in ratios.items()
            if len(own)
        ),
    ]
