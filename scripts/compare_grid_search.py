"""How far is the plan from the best split? Every split of each layer is measured, and the planned one beside it.

A layer is divided by its channels and, where it can be, by its lines, as the planner divides it. The smallest of many
noisy figures is too small, so the grid only *chooses* its best split. That split, the planned one and each side alone
are then measured again, in turn, and these figures are reported; rounds during which the machine was unsteady are
repeated, or their row is marked.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from networks import NETWORKS, network
from reporting import Report, bars, describe, geometric_mean, markdown_table, median_us, run_main
from steady_layers import PATIENCE_S, Program, Rounds, SteadyTimer

from tvm_coexec.compiler.target import target_for
from tvm_coexec.frontends import to_graph
from tvm_coexec.layers import AnyLayer, Conv2d, along_partition_axes, layer_to_json
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.planning.from_profile import planner
from tvm_coexec.planning.plan import LayerPlan
from tvm_coexec.planning.split import Planner
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Candidate, Point
from tvm_coexec.tuning.session import open_session
from tvm_coexec.tuning.tuner import Tuner
from tvm_coexec.tuning.watch import Watch
from tvm_coexec.tuning.workloads import NAMED, layers_named

ROUNDS = 7
"""Times that the reported splits are measured in turn."""
POINTS_A_CALL = 12
GRID_REPEATS = 7
"""A call stays within seconds, which a lost device costs at most; the grid only chooses: a few repetitions do."""


@dataclass
class Grid:
    """One way to divide a layer: the medians of all its splits."""

    candidate: Candidate
    us: dict[int, float] = field(default_factory=dict)

    @property
    def layer(self) -> AnyLayer:
        return self.candidate.layer

    @property
    def best_split(self) -> int:
        return min(self.us, key=lambda split: self.us[split])


@dataclass
class Compared:
    """One layer's figures: a grid for each way to divide it, and the raw samples of what is reported."""

    layer: AnyLayer
    plan: LayerPlan
    grids: list[Grid]
    max_rel_error: float = 0.0
    rounds: Rounds = field(default_factory=Rounds)
    samples_us: dict[str, list[float]] = field(default_factory=dict)

    @property
    def single_us(self) -> float:
        return min(self.us("cpu"), self.us("gpu"))

    @property
    def best(self) -> Grid:
        """The grid with the best split."""
        return min(self.grids, key=lambda grid: grid.us[grid.best_split])

    @property
    def planned(self) -> Grid:
        """The grid of the way that the plan divides the layer."""
        return next(grid for grid in self.grids if grid.layer == self.plan.layer)

    def us(self, what: str) -> float:
        return median_us(self.samples_us[what])

    def to_json(self) -> dict[str, Any]:
        return {
            **layer_to_json(self.layer),
            "units": self.layer.units,
            "cpu_us": self.us("cpu"),
            "gpu_us": self.us("gpu"),
            "best_axis": self.best.layer.axis,
            "best_split": self.best.best_split,
            "best_us": self.us("best"),
            "planned_axis": self.plan.layer.axis,
            "planned_split": self.plan.cpu_units,
            "planned_us": self.us("planned"),
            "predicted_us": self.plan.total_us,
            "reason": self.plan.reason,
            "speedup_best": self.single_us / self.us("best"),
            "speedup_planned": self.single_us / self.us("planned"),
            "max_rel_error": self.max_rel_error,
            **{"grid_us" if grid is self.grids[0] else "grid_by_lines_us": grid.us for grid in self.grids},
            "samples_us": self.samples_us,
            **self.rounds.to_json(),
            "cpu_variant": str(self.planned.candidate.cpu),
            "gpu_variant": str(self.planned.candidate.gpu),
        }


def layers_of(name: str) -> list[AnyLayer]:
    """Give the layers of a named set or a file, or the distinct convolutions of a network."""
    if name in NAMED or name not in NETWORKS:
        return layers_named(name)
    return list(dict.fromkeys(node.layer for node in to_graph(network(name)).nodes if isinstance(node.layer, Conv2d)))


def chunks(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Points in the portions that a call to the device measures."""
    for start in range(0, len(points), POINTS_A_CALL):
        yield list(points[start : start + POINTS_A_CALL])


def some_splits(units: int, most: int | None) -> list[int]:
    """List every split, or at most so many, evenly spread from either side alone to the other."""
    return sorted({round(split) for split in np.linspace(0, units, min(most or units + 1, units + 1)).tolist()})


def compare(tuner: Tuner, plans: Planner, timer: SteadyTimer, layer: AnyLayer, *, most: int | None = None) -> Compared:
    """Measure one layer: the grid of each way to divide it, with ``most`` splits at most, then what is reported."""
    ways = [way for way in along_partition_axes(layer) if way == layer or plans.knows(way)]
    compared = Compared(
        layer, plans.plan_best_axis("layer", layer), [Grid(_kernels(tuner, plans, way)) for way in ways]
    )
    for grid in compared.grids:
        repeats = min(GRID_REPEATS, tuner.repeats(layer))
        points = [Point(split, grid.layer.units - split, repeats) for split in some_splits(grid.layer.units, most)]
        for portion in chunks(points):
            measured = tuner.ask(grid.candidate, portion)
            compared.max_rel_error = max(compared.max_rel_error, measured.max_rel_error or 0.0)
            grid.us.update({point.cpu_units: median_us(point.wall_us) for point in measured.points})
    _measure_in_turn(tuner, plans, timer, compared)
    return compared


def _kernels(tuner: Tuner, plans: Planner, way: AnyLayer) -> Candidate:
    """The kernels of the plan of a layer divided in one way; those of an even split for a side that it leaves idle."""
    plan = plans.plan_layer("layer", way)
    even = plans.plan_split("layer", way, max(way.units // 2, 1)) if way.units > 1 else plan
    default = tuner.default_candidate(way)
    return Candidate(way, plan.cpu or even.cpu or default.cpu, plan.gpu or even.gpu or default.gpu)


def _measure_in_turn(tuner: Tuner, plans: Planner, timer: SteadyTimer, compared: Compared) -> None:
    """Measure the best split, the planned one and each side alone in turn, several times over.

    A side alone may use whichever kernel is fastest for it: a planned one, the default, or the predictor's choice.
    """
    layer, units = compared.layer, compared.layer.units
    default = tuner.default_candidate(layer)
    alone = Candidate(
        layer,
        plans.plan_split("layer", layer, units).cpu or default.cpu,
        plans.plan_split("layer", layer, 0).gpu or default.gpu,
    )
    single = [alone, default, *(grid.candidate for grid in compared.grids)]
    wanted = {
        "best": [(compared.best.candidate, compared.best.best_split)],
        "planned": [(compared.planned.candidate, compared.plan.cpu_units)],
        "cpu": [(candidate, candidate.layer.units) for candidate in single],
        "gpu": [(candidate, 0) for candidate in single],
    }
    programs = {Program.at(*one): one[0] for ones in wanted.values() for one in ones}
    compared.rounds = timer.time(programs, tuner.repeats(layer), ROUNDS)
    for what, ones in wanted.items():
        compared.samples_us[what] = compared.rounds.fastest(Program.at(*one) for one in ones)


def summary(layers: Sequence[Compared]) -> dict[str, float]:
    return {
        "speedup_best": geometric_mean(c.single_us / c.us("best") for c in layers),
        "speedup_planned": geometric_mean(c.single_us / c.us("planned") for c in layers),
        "planned_over_best": geometric_mean(c.us("planned") / c.us("best") for c in layers),
        "max_speedup_planned": max(c.single_us / c.us("planned") for c in layers),
        "worst_planned_over_single": max(c.us("planned") / c.single_us for c in layers),
        "max_rel_error": max(c.max_rel_error for c in layers),
    }


HEADER = (
    "layer",
    "CPU µs",
    "GPU µs",
    "planned CPU units",
    "planned µs",
    "best split",
    "best µs",
    "planned speedup",
    "best speedup",
)


def row(compared: Compared) -> list[Any]:
    return [
        describe(compared.layer),
        compared.us("cpu"),
        compared.us("gpu"),
        _shown_split(compared.planned, compared.plan.cpu_units),
        compared.us("planned"),
        _shown_split(compared.best, compared.best.best_split),
        compared.us("best"),
        compared.rounds.mark(f"{compared.single_us / compared.us('planned'):.2f}×"),
        compared.rounds.mark(f"{compared.single_us / compared.us('best'):.2f}×"),
    ]


def _shown_split(grid: Grid, cpu_units: int) -> str:
    return f"{cpu_units}/{grid.layer.units}{' lines' if grid.layer.axis == 'lines' else ''}"


def draw(axes: Any, layers: Sequence[Compared]) -> None:
    """Draw the speedups over the faster side alone."""
    series = {
        "planned": [c.single_us / c.us("planned") for c in layers],
        "best of the grid": [c.single_us / c.us("best") for c in layers],
    }
    bars(axes, [describe(c.layer) for c in layers], series, "speedup over the faster side alone")
    axes.axhline(1, color="black", linewidth=0.8)


def compare_all(
    profile: str,
    layers: Sequence[AnyLayer],
    out: str,
    title: str,
    tracker: str | None = None,
    key: str | None = None,
    most_splits: int | None = None,
    patience_s: float = PATIENCE_S,
) -> list[Compared]:
    """Compare layers on the profile's device, and write the report; see :class:`SteadyTimer` for the patience."""
    with Profile.open(profile) as opened:
        plans, report = planner(opened, target_for(opened.facts).hardware), Report(out, title, opened.facts)
        choice = DeviceChoice.again(opened.facts) if tracker is None else DeviceChoice()
        with open_session(choice, tracker, key) as session:
            facts = session.facts()
            watch = Watch(session, target_for(facts), facts)
            watch.look_once()
            tuner = Tuner(session, opened, target_for(facts), watch=watch)
            timer = SteadyTimer(tuner, patience_s)
            return report.collect(layers, partial(compare, tuner, plans, timer, most=most_splits), write)


def write(compared: Sequence[Compared], report: Report) -> None:
    result = {"layers": [one.to_json() for one in compared], "summary": summary(compared)}
    text = markdown_table(HEADER, map(row, compared))
    text += "\n" + "".join(f"- {name}: {value:.3g}\n" for name, value in result["summary"].items())
    text += (
        "\nEach figure is the median time of the layer as it runs inside a network: again and again, both sides warm "
        "and synchronised before and after it. Rounds during which the machine was unsteady were repeated"
        f" ({sum(one.rounds.repeated for one in compared)}); where it stayed so, the row is marked.\n"
    )
    report.write(result, text, lambda axes: draw(axes, compared))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", required=True, metavar="DIR", help="a profile made by `tvm-coexec tune`")
    parser.add_argument(
        "--layers",
        required=True,
        metavar="SET",
        help=f"{', '.join(dict.fromkeys((*NAMED, *NETWORKS)))}, or a JSON file with a list of layers",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for result.json, result.md, result.png")
    parser.add_argument("--tracker", metavar="HOST:PORT", help="an RPC tracker; by default one is started on loopback")
    parser.add_argument("--key", help="key of the device at the tracker")
    parser.add_argument(
        "--splits", type=int, metavar="N", help="of each layer at most so many, evenly spread (default: every split)"
    )
    options = parser.parse_args()
    title = f"Planned split against the grid search: {options.layers}"
    layers = layers_of(options.layers)
    compare_all(options.profile, layers, options.out, title, options.tracker, options.key, options.splits)


if __name__ == "__main__":
    run_main(main)
