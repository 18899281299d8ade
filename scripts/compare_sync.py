"""What does synchronisation cost? Flags in shared memory against OpenCL events, on single layers and chains of 12.

Flags in buffers that stay mapped are measured too, where a probe finds that they work.

All layers of a chain are halved. Its time beyond the longer half of every layer, summed, is what synchronising costs;
the halves' own times come from the timeline of the same run, so that contention counts as the halves' own. (Where
flags need kernels of their own for a timeline, they come from other runs of the same round.) Launches are part of the
cost: that flags allow one for all layers on a CPU device of one core is part of what they save. The mechanisms take
turns in short rounds, since a shared machine's speed changes slowly, and the cost is the median of the runs'
differences, not the difference of the medians, which are shown beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from reporting import Report, bars, describe, markdown_table, median_us, run_main

from tvm_coexec.compiler.probes import halved_chain
from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import DeviceError
from tvm_coexec.layers import Linear, layer_to_json
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.module import Module

DEPTH = 12
RUNS_A_ROUND = 5
"""Twelve layers tell what one adds beside the launch of the chain; rounds are short, since contenders take turns."""
LAYERS = [Linear(m, k, k, ("bias",)) for m, k in ((48, 768), (6, 768), (1, 768), (1, 1024))]


@dataclass
class Chain:
    """A module of equal layers, and its samples."""

    layer: Linear
    depth: int
    mechanism: str
    module: Module
    chain_us: list[float] = field(default_factory=list)
    halves_us: list[float] = field(default_factory=list)
    overheads_us: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Measure one round: runs, and the longer halves of each."""
        runs = [run_and_longer_halves_us(self.module) for _ in range(RUNS_A_ROUND)]
        chain_us, halves_us = (list(times_us) for times_us in zip(*runs, strict=True))
        if not self.module.timeline_is_faithful:
            chain_us = [median_us(self.module.benchmark(repeats=RUNS_A_ROUND, warmup=3).latency_us)] * RUNS_A_ROUND
        self.chain_us += chain_us
        self.halves_us += halves_us
        self.overheads_us += [(run - half) / self.depth for run, half in zip(chain_us, halves_us, strict=True)]

    @property
    def overhead_us_per_layer(self) -> float:
        return median_us(self.overheads_us)

    @property
    def shown_overhead(self) -> str:
        """Show the overhead with the quartiles of the runs."""
        first, third = np.quantile(self.overheads_us, (0.25, 0.75))
        return f"{self.overhead_us_per_layer:.1f} ({first:.1f}–{third:.1f})"

    def to_json(self) -> dict[str, Any]:
        return {
            "layer": layer_to_json(self.layer),
            "depth": self.depth,
            "mechanism": self.mechanism,
            "chain_us": median_us(self.chain_us),
            "halves_us": median_us(self.halves_us),
            "overhead_us_per_layer": self.overhead_us_per_layer,
            "samples_us": {"chain": self.chain_us, "halves": self.halves_us, "overhead": self.overheads_us},
        }


def run_and_longer_halves_us(module: Module) -> tuple[float, float]:
    """What a run took, and the longer half's own time of every layer, summed."""
    events = module.profile(warmup=1)
    halves_us: dict[str, dict[str, float]] = {}
    for event in events:
        if event.kind in ("call", "kernel"):
            halves_us.setdefault(event.step, {})[event.side] = event.end_us - event.start_us
    return max(event.end_us for event in events if event.side == "cpu"), sum(
        map(max, map(dict.values, halves_us.values()))
    )


def halved(layer: Linear, depth: int, device: Device) -> Chain:
    """Build ``depth`` layers one after the other, half of each on either side."""
    facts = device.facts()
    module = Module(halved_chain(layer, depth, target_for(facts), facts), device)
    module.randomize_inputs()
    return Chain(layer, depth, device.mechanism, module)


def measure(layer: Linear, devices: Sequence[Device], rounds: int) -> list[Chain]:
    """Time chains of a layer, of every depth, on each of the devices (one by another mechanism) in turn."""
    chains = []
    for depth in (1, DEPTH):
        turn = [halved(layer, depth, device) for device in devices]
        for number in range(rounds):
            for chain in turn[:: -1 if number % 2 else 1]:
                chain.measure()
        chains += turn
    return chains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", metavar="NAME", help="any unambiguous part of a device's name")
    parser.add_argument("--rounds", type=int, default=27, metavar="N", help="turns of each mechanism (%(default)s)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for result.json, result.md, result.png")
    options = parser.parse_args()
    first = open_device(options.device)
    mechanisms = ["svm", "event"] if first.info.mechanism == "svm" else ["event"]
    devices = [open_device(first.info.name, mechanism=mechanism) for mechanism in mechanisms]
    try:
        devices.append(open_device(first.info.name, mechanism="mapped"))
    except DeviceError as error:
        print(f"without the mechanism 'mapped': {error}", file=sys.stderr)
    report = Report(options.out, "Synchronisation: flags in shared memory against OpenCL events", first.facts())
    report.collect(LAYERS, lambda layer: measure(layer, devices, options.rounds), write)


def write(measured: Sequence[Sequence[Chain]], report: Report) -> None:
    """Write the figures of the first layers, as many as were measured."""
    chains = [chain for of_layer in measured for chain in of_layer]
    rows = [
        [
            describe(chain.layer),
            chain.depth,
            chain.mechanism,
            median_us(chain.chain_us),
            median_us(chain.halves_us),
            chain.shown_overhead,
        ]
        for chain in chains
    ]
    header = ("layer", "depth", "mechanism", "chain µs", "longer halves µs", "overhead µs a layer (quartiles)")
    deep = [chain for chain in chains if chain.depth == DEPTH]
    result = {
        "chains": [chain.to_json() for chain in deep],
        "single_layers": [chain.to_json() for chain in chains if chain.depth == 1],
    }

    def draw(axes: Any) -> None:
        series = {
            mechanism: [max(c.overhead_us_per_layer, 0.0) for c in deep if c.mechanism == mechanism]
            for mechanism in dict.fromkeys(chain.mechanism for chain in deep)
        }
        names = [describe(layer) for layer in LAYERS[: len(measured)]]
        bars(axes, names, series, f"overhead, µs a layer, chains of {DEPTH}")

    report.write(result, markdown_table(header, rows), draw)


if __name__ == "__main__":
    run_main(main)
