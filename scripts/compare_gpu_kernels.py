"""How fast are the GPU's kernels compared with the vendor's? Each GPU half and cuBLAS or cuDNN are measured in turn.

A layer runs with the variant that was fastest for it in the profile, else with its default one, again and again in one
program. torch calls the vendor's libraries for the same layer, without bias or activation and without TF32, from a
CUDA graph; where there is no torch with CUDA, only our own kernels are measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from networks import network
from reporting import Report, bars, describe, geometric_mean, markdown_table, median_us, run_main

from tvm_coexec.compiler.target import target_for
from tvm_coexec.frontends import to_graph
from tvm_coexec.layers import AnyLayer, Conv2d, Linear, Variant, layer_to_json
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Candidate, Point
from tvm_coexec.runtime.device import DeviceChoice
from tvm_coexec.tuning.session import open_session
from tvm_coexec.tuning.tuner import Tuner, repeats_for
from tvm_coexec.tuning.workloads import layers_named

ROUNDS = 5
"""Times that a layer's kernels and the vendor's are measured in turn."""
GRAPH_CALLS = 20

Vendor = Callable[[], float]
"""Measures the vendor's kernels for a layer, in microseconds a call."""


@dataclass
class Compared:
    """One layer's samples."""

    layer: AnyLayer
    variant: Variant
    own_us: list[float] = field(default_factory=list)
    vendor_us: list[float] = field(default_factory=list)
    max_rel_error: float = 0.0

    @property
    def ratio(self) -> float | None:
        """Our time over the vendor's."""
        return median_us(self.own_us) / median_us(self.vendor_us) if self.vendor_us else None

    @property
    def gflops(self) -> float:
        return self.layer.flops / median_us(self.own_us) / 1e3

    def to_json(self) -> dict[str, Any]:
        return {
            **layer_to_json(self.layer),
            "variant": str(self.variant),
            "own_us": median_us(self.own_us),
            "vendor_us": median_us(self.vendor_us) if self.vendor_us else None,
            "ratio": self.ratio,
            "gflops": self.gflops,
            "max_rel_error": self.max_rel_error,
            "samples_us": {"own": self.own_us, "vendor": self.vendor_us},
        }


def vendor_of(layer: AnyLayer) -> Vendor | None:
    """What measures cuBLAS or cuDNN for a layer; None where torch has no CUDA device."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    if isinstance(layer, Linear):
        x, weights = torch.randn(layer.m, layer.k, device="cuda"), torch.randn(layer.n, layer.k, device="cuda")
        call = partial(torch.nn.functional.linear, x, weights)
    else:
        top, left, bottom, right = layer.padding
        shape = (layer.batch, layer.in_channels, layer.h + top + bottom, layer.w + left + right)
        kernel = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel)
        x, weights = (
            torch.randn(size, device="cuda").to(memory_format=torch.channels_last) for size in (shape, kernel)
        )
        options = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
        call = partial(torch.nn.functional.conv2d, x, weights, **options)
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_CALLS):
            call()

    def measure() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) * 1e3 / GRAPH_CALLS

    return measure


def fastest(tuner: Tuner, layer: AnyLayer) -> Variant:
    """The variant that took least time for the whole layer in the profile; the default where none was measured."""
    found: dict[Variant, list[float]] = {}
    for sample in tuner.profile.samples():
        if (sample.side, sample.layer, sample.units) == ("gpu", layer, layer.units):
            found.setdefault(sample.variant, []).append(sample.median_us)
    return min(found, key=lambda variant: median_us(found[variant])) if found else tuner.default_candidate(layer).gpu


def compare(tuner: Tuner, layer: AnyLayer) -> Compared:
    """Measure both in turn; the result is checked first."""
    compared, vendor = Compared(layer, fastest(tuner, layer)), vendor_of(layer)
    candidate = Candidate(layer, tuner.default_candidate(layer).cpu, compared.variant)
    point = Point(0, layer.units, repeats_for(layer))
    for turn in range(ROUNDS):
        measured = tuner.ask(candidate, [point], check=turn == 0)
        compared.max_rel_error = max(compared.max_rel_error, measured.max_rel_error or 0.0)
        compared.own_us += measured.points[0].gpu_us
        if vendor is not None:
            compared.vendor_us += [vendor() for _ in range(3)]
    return compared


def layers_of(names: Sequence[str]) -> list[AnyLayer]:
    """The distinct linear layers and convolutions of some sets and networks."""
    found: list[AnyLayer] = []
    for name in names:
        nodes = to_graph(network(name)).nodes if name == "mobilenet_v2" else ()
        found += [node.layer for node in nodes] if nodes else layers_named(name)
    return list(dict.fromkeys(layer for layer in found if isinstance(layer, Linear | Conv2d)))


def write(compared: Sequence[Compared], report: Report) -> None:
    ratios = [one.ratio for one in compared if one.ratio is not None]
    summary: dict[str, float] = {"max_rel_error": max(one.max_rel_error for one in compared)}
    if ratios:
        summary |= {"own_over_vendor": geometric_mean(ratios), "worst_own_over_vendor": max(ratios)}
    rows = [
        [
            describe(one.layer),
            median_us(one.own_us),
            median_us(one.vendor_us) if one.vendor_us else "",
            f"{one.ratio:.2f}" if one.ratio else "",
            f"{one.gflops:.0f}",
            str(one.variant),
        ]
        for one in compared
    ]
    text = markdown_table(("layer", "own µs", "cuBLAS or cuDNN µs", "own over it", "GFLOP/s", "variant"), rows)
    text += "\n" + "".join(f"- {name}: {value:.3g}\n" for name, value in summary.items())
    if not ratios:
        text += "\nThere is no torch with CUDA here: the vendor's libraries were not measured.\n"
    report.write({"layers": [one.to_json() for one in compared], "summary": summary}, text, partial(draw, compared))


def draw(compared: Sequence[Compared], axes: Any) -> None:
    series = {"own": [median_us(one.own_us) for one in compared]}
    if all(one.vendor_us for one in compared):
        series["cuBLAS or cuDNN"] = [median_us(one.vendor_us) for one in compared]
    bars(axes, [describe(one.layer) for one in compared], series, "µs")
    axes.set_ylim(0, float(np.max(list(series.values()))) * 1.05)


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
        report = Report(options.out, "The GPU's kernels beside the vendor's", profile.facts)
        with open_session(DeviceChoice.again(profile.facts)) as session:
            tuner = Tuner(session, profile, target_for(session.facts()))
            report.collect(layers, partial(compare, tuner), write)


if __name__ == "__main__":
    run_main(main)
