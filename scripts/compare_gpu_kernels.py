"""How fast are the GPU's kernels compared with others'? Each layer's GPU half and theirs, in turn.

A layer runs with the variant that was fastest for it in the profile, else with its default one, and with the one that
the profile's plan chooses, again and again in one program. Others are cuBLAS or cuDNN (where torch has CUDA), CLBlast
(where it is installed) and TVM's dlight, all without bias or activation. What the device can do at most is measured
too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from gpu_peaks import Peaks, measured_peaks
from gpu_rivals import RIVALS, rivals_of
from networks import network
from reporting import Report, bars, describe, geometric_mean, markdown_table, median_us, run_main

from tvm_coexec.compiler.target import target_for
from tvm_coexec.frontends import to_graph
from tvm_coexec.layers import AnyLayer, Conv2d, Linear, Variant, layer_to_json
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.planning.from_profile import planner
from tvm_coexec.planning.split import Planner
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Candidate, Point
from tvm_coexec.runtime.device import Device, open_chosen
from tvm_coexec.tuning.session import open_session
from tvm_coexec.tuning.tuner import Tuner, repeats_for
from tvm_coexec.tuning.workloads import layers_named

ROUNDS = 5
"""Times that a layer's kernels and others' are measured in turn."""


@dataclass
class Compared:
    """One layer's samples.

    Parameters
    ----------
    variants
        The variant that was fastest in the profile, called ``own``, and the plan's choice, called ``planned``, if the
        predictors know of the layer.
    samples_us
        Times of these, and of the others by their names.
    """

    layer: AnyLayer
    variants: dict[str, Variant]
    samples_us: dict[str, list[float]] = field(default_factory=dict)
    max_rel_error: float = 0.0

    def us(self, name: str) -> float | None:
        return median_us(self.samples_us[name]) if name in self.samples_us else None

    @property
    def own_us(self) -> float:
        return median_us(self.samples_us["own"])

    def over(self, rival: str) -> float | None:
        """Divide our time by another's."""
        return self.own_us / median_us(self.samples_us[rival]) if rival in self.samples_us else None

    @property
    def planned_over_best(self) -> float | None:
        """Time of the plan's choice over that of the fastest variant that was measured; both were measured again."""
        if "planned" not in self.variants:
            return None
        if self.variants["planned"] == self.variants["own"]:
            return 1.0
        return median_us(self.samples_us["planned"]) / self.own_us

    @property
    def gflops(self) -> float:
        return self.layer.flops / self.own_us / 1e3

    def to_json(self, peaks: Peaks) -> dict[str, Any]:
        return {
            **layer_to_json(self.layer),
            "variants": {name: str(variant) for name, variant in self.variants.items()},
            "family": self.variants["own"].implementation,
            "own_us": self.own_us,
            "others_us": {rival: self.us(rival) for rival in RIVALS},
            "own_over_others": {rival: self.over(rival) for rival in RIVALS},
            "planned_over_best": self.planned_over_best,
            "gflops": self.gflops,
            "share_of_peak": self.gflops / peaks.gflops,
            "max_rel_error": self.max_rel_error,
            "samples_us": self.samples_us,
        }


def fastest(tuner: Tuner, layer: AnyLayer) -> Variant:
    """The variant that took least time for the whole layer in the profile; the default where none was measured."""
    found: dict[Variant, list[float]] = {}
    for sample in tuner.profile.samples():
        if (sample.side, sample.layer, sample.units) == ("gpu", layer, layer.units):
            found.setdefault(sample.variant, []).append(sample.median_us)
    return min(found, key=lambda variant: median_us(found[variant])) if found else tuner.default_candidate(layer).gpu


def compare(tuner: Tuner, plans: Planner, device: Device, layer: AnyLayer) -> Compared:
    """Measure all in turn; our results are checked first."""
    variants = {"own": fastest(tuner, layer)}
    if plans.knows(layer):
        planned = plans.plan_split("layer", layer, 0).gpu
        variants |= {"planned": planned} if planned else {}
    compared, rivals = Compared(layer, variants), rivals_of(layer, device)
    cpu, point = tuner.default_candidate(layer).cpu, Point(0, layer.units, repeats_for(layer))
    for turn in range(ROUNDS):
        for variant in dict.fromkeys(variants.values()):
            measured = tuner.ask(Candidate(layer, cpu, variant), [point], check=turn == 0)
            compared.max_rel_error = max(compared.max_rel_error, measured.max_rel_error or 0.0)
            for name in (name for name, one in variants.items() if one == variant):
                compared.samples_us.setdefault(name, []).extend(measured.points[0].gpu_us)
        for name, measure in rivals.items():
            compared.samples_us.setdefault(name, []).extend(measure() for _ in range(3))
    return compared


def layers_of(names: Sequence[str]) -> list[AnyLayer]:
    """The distinct linear layers and convolutions of some sets and networks."""
    found: list[AnyLayer] = []
    for name in names:
        nodes = to_graph(network(name)).nodes if name == "mobilenet_v2" else ()
        found += [node.layer for node in nodes] if nodes else layers_named(name)
    return list(dict.fromkeys(layer for layer in found if isinstance(layer, Linear | Conv2d)))


def summary_of(compared: Sequence[Compared], peaks: Peaks) -> dict[str, float]:
    """Average over all layers (geometrically), the plan's choice also over the layers of each family."""
    summary = {
        "max_rel_error": max(one.max_rel_error for one in compared),
        "peak_gflops": peaks.gflops,
        "peak_gbytes_a_second": peaks.gbytes,
    }
    for rival in RIVALS:
        ratios = [ratio for one in compared if (ratio := one.over(rival)) is not None]
        if ratios:
            summary |= {f"own over {rival}": geometric_mean(ratios), f"worst own over {rival}": max(ratios)}
    choices: dict[str, list[float]] = {}
    for one in compared:
        if one.planned_over_best is not None:
            for family in ("all families", one.variants["own"].implementation):
                choices.setdefault(family, []).append(one.planned_over_best)
    return summary | {f"planned over best, {name}": geometric_mean(ratios) for name, ratios in choices.items()}


def write(peaks: Peaks, compared: Sequence[Compared], report: Report) -> None:
    summary = summary_of(compared, peaks)
    present = [rival for rival in RIVALS if any(rival in one.samples_us for one in compared)]
    rows = [
        [
            describe(one.layer),
            one.own_us,
            *(one.us(rival) or "" for rival in present),
            *(_ratio(one.over(rival)) for rival in present),
            _ratio(one.planned_over_best),
            f"{one.gflops:.0f}",
            f"{one.gflops / peaks.gflops:.0%}",
            str(one.variants["own"]),
        ]
        for one in compared
    ]
    header = ["layer", "own µs", *(f"{rival} µs" for rival in present), *(f"own over {rival}" for rival in present)]
    text = markdown_table([*header, "planned over best", "GFLOP/s", "of the peak", "variant"], rows)
    text += "\n" + "".join(f"- {name}: {value:.3g}\n" for name, value in summary.items())
    text += "\nThe peak is that of multiply-adds, as a small kernel reached it; Winograd needs fewer than counted.\n"
    missing = [rival for rival in RIVALS if rival not in present]
    if missing:
        text += f"\nNot measured, since they are not here or refuse these layers: {', '.join(missing)}.\n"
    report.write(
        {"layers": [one.to_json(peaks) for one in compared], "summary": summary}, text, partial(draw, compared)
    )


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def draw(compared: Sequence[Compared], axes: Any) -> None:
    series = {"own": [one.own_us for one in compared]}
    for rival in RIVALS:
        times = [one.us(rival) for one in compared]
        if any(times):
            series[rival] = [np.nan if time is None else time for time in times]
    bars(axes, [describe(one.layer) for one in compared], series, "µs")
    axes.set_yscale("log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", required=True, metavar="DIR", help="a profile made by `tvm-coexec tune`")
    parser.add_argument(
        "--layers",
        default="vit-base,resnet50,mobilenet_v2",
        metavar="SETS",
        help="names of sets or JSON files with lists of layers, with commas between; by default %(default)s",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for result.json, result.md, result.png")
    options = parser.parse_args()
    layers = layers_of(options.layers.split(","))
    with Profile.open(options.profile) as profile:
        report = Report(options.out, "The GPU's kernels compared with others'", profile.facts)
        choice = DeviceChoice.again(profile.facts)
        with closing(open_chosen(choice)) as device, open_session(choice) as session:
            tuner = Tuner(session, profile, target_for(session.facts()))
            plans = planner(profile, tuner.target.hardware)
            report.collect(layers, partial(compare, tuner, plans, device), partial(write, measured_peaks(device)))


if __name__ == "__main__":
    run_main(main)
