"""What do splits that adapt gain where another program takes the CPU's core in mid-run, and what do they cost else?

A chain of 12 halved layers runs with fixed splits and with splits that adapt. Undisturbed, both take turns. Then, round
after round, a process begins to compute on the core of the CPU's side; the module that adapts gets 50 inferences to
find other splits, and from then on both take turns again, until the process pauses.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from disturb import BUFFER_BYTES, KINDS, work
from reporting import Report, bars, describe, markdown_table, median_us, run_main

from tvm_coexec.compiler.probes import halved_chain
from tvm_coexec.compiler.target import target_for
from tvm_coexec.layers import Linear
from tvm_coexec.module.package import Package
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.module import Module

DEPTH = 12
INFERENCES = 50
"""After which the splits should have followed."""

TURNS, RUNS_A_TURN = 6, 25
BURST_S = 0.02
"""Turns are long enough for splits to follow, and short beside what a shared machine's speed takes to change."""


class Competitor:
    """A process that works on a core while it is let."""

    def __init__(self, core: int, kind: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._may_work, self._ends = context.Event(), context.Event()
        self._process = context.Process(target=compete, args=(core, kind, self._may_work, self._ends), daemon=True)
        self._process.start()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Let it work, and then pause."""
        self._may_work.set()
        time.sleep(2 * BURST_S)
        try:
            yield
        finally:
            self._may_work.clear()
            time.sleep(2 * BURST_S)

    def close(self) -> None:
        self._ends.set()
        self._may_work.set()
        self._process.join()


def compete(core: int, kind: str, may_work: Any, ends: Any) -> None:
    """Work in short bursts on a core whenever that is allowed."""
    os.sched_setaffinity(0, {core})
    buffer = np.ones(BUFFER_BYTES // 4, np.float32)
    while not ends.is_set():
        may_work.wait()
        work(kind, time.monotonic() + BURST_S, buffer)


def turns_us(fixed: Module, adapting: Module) -> tuple[float, float]:
    """What a run of each takes in the mean, in short turns."""
    times_us: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * TURNS):
        which = (turn + turn // 2) % 2
        times_us[which].append(run_us((fixed, adapting)[which], RUNS_A_TURN))
    return float(np.mean(times_us[0])), float(np.mean(times_us[1]))


def run_us(module: Module, count: int) -> float:
    """Time some runs and give their mean; those of benchmarks would teach nothing."""
    start_ns = time.perf_counter_ns()
    for _ in range(count):
        module.run()
    return (time.perf_counter_ns() - start_ns) / count / 1e3


def opened(package: Package, device: Device, *, adapt: bool) -> Module:
    """Load the module, and warm it up."""
    module = Module(package, device, adapt=adapt)
    module.randomize_inputs()
    run_us(module, INFERENCES)
    return module


def measure(layer: Linear, device: Device, kind: str, rounds: int) -> dict[str, Any]:
    """Time rounds without a competitor, then with one."""
    facts = device.facts()
    package = halved_chain(layer, DEPTH, target_for(facts), facts)
    fixed = opened(package, device, adapt=False)
    quiet = [turns_us(fixed, opened(package, device, adapt=True)) for _ in range(rounds)]
    competitor = Competitor(device.cpu_cores[0], kind)
    disturbed, told = [], []
    try:
        for _ in range(rounds):
            adapting = opened(package, device, adapt=True)
            with competitor.working():
                run_us(adapting, INFERENCES)
                disturbed.append(turns_us(fixed, adapting))
            told.append(adapting.adaptation.splitlines()[0])
    finally:
        competitor.close()
    return {
        "layer": describe(layer),
        "quiet_us": quiet,
        "disturbed_us": disturbed,
        "cost": median_us([adapting / one for one, adapting in quiet]) - 1,
        "gain": median_us([one / adapting for one, adapting in disturbed]),
        "adaptations": told,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", metavar="NAME", help="any unambiguous part of a device's name")
    parser.add_argument("--kind", choices=KINDS, default="compute", help="its work (default: %(default)s)")
    parser.add_argument(
        "--rows",
        type=int,
        default=512,
        metavar="N",
        help="of the layers' input (default: %(default)d); layers shorter than the system's time slices, as with"
        " 48, gain nothing",
    )
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="(default: %(default)d)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for result.json, result.md, result.png")
    options = parser.parse_args()
    device = open_device(options.device)
    measured = measure(Linear(options.rows, 768, 768, ("bias",)), device, options.kind, options.rounds)
    report = Report(
        options.out, f"Splits that adapt, and a program that takes the CPU's core ({options.kind})", device.facts()
    )
    quiet, disturbed = (np.median(measured[name], axis=0) for name in ("quiet_us", "disturbed_us"))
    rows = [
        ["alone", float(quiet[0]), float(quiet[1]), f"{100 * measured['cost']:+.1f} %"],
        ["beside the program", float(disturbed[0]), float(disturbed[1]), f"{measured['gain']:.2f}x as fast"],
    ]

    def draw(axes: Any) -> None:
        series = {"fixed": [quiet[0], disturbed[0]], "adapting": [quiet[1], disturbed[1]]}
        bars(axes, [row[0] for row in rows], series, f"µs, chains of {DEPTH} layers {measured['layer']}")

    report.write(measured, markdown_table(("", "fixed µs", "adapting µs", "adapting"), rows), draw)


if __name__ == "__main__":
    run_main(main)
