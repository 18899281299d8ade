"""Disturbs the machine as other programs do: bursts of competing work on some cores and on the memory, from a seed.

The same seed gives the same bursts, so that two tunings, or two releases, meet the same noise. A burst lasts
20 ms to 2 s, as pauses do; a third of the bursts computes, a third reads more memory than caches hold, and a third does
both by turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

EXAMPLES = """\
examples:
  ./scripts/disturb --cores 0,1 --seconds 600 &
  ./scripts/disturb --cores 1 --share 0.5 --seed 7
"""

KINDS = ("compute", "memory", "both")
SHORTEST_S, LONGEST_S = 0.02, 2.0
BUFFER_BYTES = 128 << 20
"""More than the caches of one machine hold; a server's host may have more, of which a core gets a part."""


class Burst(NamedTuple):
    """A pause, and then competing work of a kind for some seconds."""

    pause_s: float
    kind: str
    busy_s: float


def bursts(seed: int, core: int, share: float) -> Iterator[Burst]:
    """The bursts on a core without end, which is busy for about a share of the time."""
    rng = random.Random(f"{seed} {core}")
    ratio = SHORTEST_S / LONGEST_S
    while True:
        busy_s, pause_s = (LONGEST_S * ratio ** rng.random() for _ in range(2))
        yield Burst(pause_s * (1 - share) / share, rng.choice(KINDS), busy_s)


def work(kind: str, until_s: float, buffer: np.ndarray) -> None:
    """Keep the core busy until a time by :func:`time.monotonic`."""
    small = np.full(4096, 1.000001, np.float32)
    part = len(buffer) // 16
    turn = 0
    while time.monotonic() < until_s:
        turn += 1
        if kind == "compute" or (kind == "both" and turn % 2):
            np.multiply(small, small, out=small)
            np.clip(small, 0.9, 1.1, out=small)
        else:
            buffer[turn % 16 * part : (turn % 16 + 1) * part].sum()


def disturb(core: int, seed: int, share: float, until_s: float) -> None:
    """Run the bursts of one core, on it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    buffer = np.ones(BUFFER_BYTES // 4, np.float32)
    for burst in bursts(seed, core, share):
        time.sleep(min(burst.pause_s, max(until_s - time.monotonic(), 0.0)))
        if time.monotonic() >= until_s:
            return
        work(burst.kind, min(time.monotonic() + burst.busy_s, until_s), buffer)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cores", default="0,1", metavar="LIST", help="cores to disturb (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="N", help="for how long (default: %(default)g)")
    parser.add_argument(
        "--share", type=float, default=0.3, metavar="X", help="of the time that a core is busy (default: %(default)g)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which bursts (default: %(default)d)")
    options = parser.parse_args(arguments)
    try:
        cores = [int(core) for core in options.cores.split(",")]
    except ValueError:
        parser.error(f"--cores must be numbers with commas between, got {options.cores!r}")
    if not 0 < options.share < 1:
        parser.error(f"--share must be between 0 and 1, got {options.share:g}")
    if missing := set(cores) - set(range(os.cpu_count() or 1)):
        parser.error(f"this machine has no core {min(missing)}; it has 0 to {(os.cpu_count() or 1) - 1}")
    until_s = time.monotonic() + options.seconds
    workers = [
        multiprocessing.Process(target=disturb, args=(core, options.seed, options.share, until_s)) for core in cores
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(worker.exitcode or 0 for worker in workers)


if __name__ == "__main__":
    raise SystemExit(main())
