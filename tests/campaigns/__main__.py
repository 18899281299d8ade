"""Campaigns: random trials for a given time, in processes of their own, so that deaths and hangs are seen.

    python tests/campaigns --minutes 5
    python tests/campaigns --seeds 17,42        what an earlier run found
    python tests/campaigns --first-seed 1       1, 2, 3 and so on

A run draws new seeds where it is not told which. A line tells what each trial that is not right ended in, with its
seed; the exit status is 1 if any was wrong, raised an error that is none of ours, died or hung, or if more were refused
than the campaign allows.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from outcomes import BAD
from trial_process import TrialProcess

LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Bars:
    """What a campaign allows: the part of its trials that is refused, how long one takes on a busy machine, and how
    many may run at once."""

    refused: float
    longest_s: float
    at_once: int = 16
    is_named: bool = False
    """It is run where it is named alone: a trial of it takes long."""


CAMPAIGNS = {
    "graphs": Bars(refused=0.01, longest_s=600),
    "onnx_damages": Bars(refused=0, longest_s=600),
    "tflite_damages": Bars(refused=0, longest_s=600),
    "module_damages": Bars(refused=0, longest_s=600),
    "profile_damages": Bars(refused=0, longest_s=600),
    "plan_damages": Bars(refused=0, longest_s=600),
    "cache_damages": Bars(refused=0, longest_s=600),
    "tuning_faults": Bars(refused=0, longest_s=1200, at_once=1),
    "long_tunings": Bars(refused=0, longest_s=14400, at_once=1, is_named=True),
}
"""Each campaign has the name of the module beside this one that makes its trials."""


def new_seeds() -> Iterator[int]:
    """Draw seeds that nobody knows before."""
    while True:
        yield random.randint(0, LARGEST_SEED)


def in_time(seeds: Iterable[int], until_s: float) -> Iterator[int]:
    """Give as many of the seeds as are asked for until a time of the monotonic clock."""
    return itertools.takewhile(lambda _: time.monotonic() < until_s, seeds)


def run(name: str, seeds: Iterator[int], processes: int) -> bool:
    """One campaign; whether it went well."""
    bars, lock = CAMPAIGNS[name], Lock()
    counts: Counter[str] = Counter()
    bad: list[int] = []

    def next_seed() -> int | None:
        with lock:
            return next(seeds, None)

    def work() -> None:
        process = TrialProcess(name, bars.longest_s)
        try:
            while (seed := next_seed()) is not None:
                outcome = process.trial(seed)
                counts[outcome.kind] += 1
                if outcome.kind in BAD:
                    bad.append(seed)
                if outcome.kind != "right" or bars.is_named:
                    print(f"{name}, seed {seed}: {outcome.kind}: {' '.join(outcome.reason.split())}", flush=True)
        finally:
            process.close()

    count = min(processes, bars.at_once)
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(work) for _ in range(count)]:
            future.result()
    total = sum(counts.values())
    print(f"{name}: {total} trials: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common()))
    if bad:
        print(f"{name}: repeat by `python tests/campaigns {name} --seeds {','.join(map(str, bad))}`", flush=True)
    return not bad and counts["refused"] <= math.ceil(bars.refused * total)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "campaigns",
        nargs="*",
        default=[name for name, bars in CAMPAIGNS.items() if not bars.is_named],
        help=f"of {', '.join(CAMPAIGNS)} (default: all but the last, of which one trial takes an hour)",
    )
    parser.add_argument("--minutes", type=float, default=5, help="for each campaign (default: 5)")
    parser.add_argument("--seeds", help="the seeds to try instead, separated by commas")
    parser.add_argument("--first-seed", type=int, help="count the seeds from this one on, so that runs are the same")
    parser.add_argument("--processes", type=int, default=2, help="trials at once (default: 2)")
    options = parser.parse_args()
    if unknown := set(options.campaigns) - set(CAMPAIGNS):
        parser.error(f"there is no campaign {', '.join(sorted(unknown))}")
    well = True
    for name in options.campaigns:
        given = [int(seed) for seed in options.seeds.split(",")] if options.seeds else None
        drawn = new_seeds() if options.first_seed is None else itertools.count(options.first_seed)
        seeds = iter(given) if given else in_time(drawn, time.monotonic() + 60 * options.minutes)
        well &= run(name, seeds, options.processes)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
