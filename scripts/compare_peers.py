"""How fast are the halves, and both together, compared with ONNX Runtime with one thread and with two?

All are measured in turn, warm, in one run. ONNX Runtime's one thread runs on the CPU's core, its two threads on the
cores of both sides; each is a process that is stopped while others are measured. A round during which the machine was
unsteady is repeated, or its row is marked.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from compare_networks import random_inputs
from linear_model import linear_model
from peer_process import PeerProcess, engine_cores, save_network
from reporting import Report, bars, describe, geometric_mean, markdown_table, median_us, run_main
from steady_layers import Program, SteadyTimer

from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import InputError
from tvm_coexec.layers import AnyLayer, Linear, layer_to_json
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.planning.from_profile import planner
from tvm_coexec.planning.split import Planner
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Candidate
from tvm_coexec.tuning.session import open_session
from tvm_coexec.tuning.tuner import Tuner, repeats_for
from tvm_coexec.tuning.workloads import NAMED, layers_named

ROUNDS = 9
ENGINES = {"ort1": 1, "ort2": 2}
"""ONNX Runtime's threads, by the names of the figures."""
SERIES = ("cpu", "gpu", "planned", *ENGINES)
COPIES = 4
"""Times that a layer stands in what ONNX Runtime runs, each on inputs of its own: they share what a call costs."""


def compare(tuner: Tuner, plans: Planner, timer: SteadyTimer, cores: Sequence[int], layer: Linear) -> dict[str, Any]:
    """Measure one layer; ``cores`` are the CPU's first, then the other side's."""
    plan = plans.plan_layer("layer", layer)
    alone = (plans.plan_split("layer", layer, layer.units).cpu, plans.plan_split("layer", layer, 0).gpu)
    default = tuner.default_candidate(layer)
    planned = Candidate(layer, plan.cpu or default.cpu, plan.gpu or default.gpu)
    singles = Candidate(layer, alone[0] or default.cpu, alone[1] or default.gpu)
    repeats, units = repeats_for(layer), layer.units
    wanted = {"cpu": (singles, units), "gpu": (singles, 0), "planned": (planned, plan.cpu_units)}
    programs = {Program.at(*one): one[0] for one in wanted.values()}
    with ExitStack() as stack:
        engines = start_engines(linear_model(layer, COPIES), cores, stack)
        others = {name: partial(_time_copies, engine) for name, engine in engines.items()}
        rounds = timer.time(programs, repeats, ROUNDS, others)
    samples_us = {name: rounds.samples_us[Program.at(*one)] for name, one in wanted.items()}
    samples_us |= rounds.others_us
    medians = {f"{name}_us": median_us(samples) for name, samples in samples_us.items()}
    return {
        **layer_to_json(layer),
        **medians,
        "planned_split": plan.cpu_units,
        "samples_us": samples_us,
        **rounds.to_json(),
    }


def _time_copies(engine: PeerProcess, repeats: int) -> list[float]:
    """What one of the copies takes."""
    return [run_us / COPIES for run_us in engine.time_us(repeats)]


def start_engines(model: onnx.ModelProto, cores: Sequence[int], stack: ExitStack) -> dict[str, PeerProcess]:
    """ONNX Runtime with every number of threads, until the stack is unwound."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tvm-coexec-")))
    save_network(folder, model, random_inputs(model))
    engines = {}
    for name, threads in ENGINES.items():
        engines[name] = PeerProcess("onnxruntime", folder, threads, cores[:threads])
        stack.callback(engines[name].close)
    return engines


def linear_only(layers: Sequence[AnyLayer]) -> list[Linear]:
    chosen = [layer for layer in layers if isinstance(layer, Linear)]
    if len(chosen) < len(layers):
        raise InputError("peers are compared on linear layers; leave the others out of the file")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", required=True, metavar="DIR", help="a profile made by `tvm-coexec tune`")
    parser.add_argument(
        "--layers", required=True, metavar="SET", help=f"{', '.join(NAMED)}, or a JSON file with a list of layers"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for result.json, result.md, result.png")
    options = parser.parse_args()
    layers = linear_only(layers_named(options.layers))
    with Profile.open(options.profile) as profile:
        facts, plans = profile.facts, planner(profile, target_for(profile.facts).hardware)
        report = Report(options.out, f"Beside ONNX Runtime: {options.layers}", facts)
        cores = engine_cores(facts)
        with open_session(DeviceChoice.again(facts)) as session:
            tuner = Tuner(session, profile, target_for(session.facts()))
            measure = partial(compare, tuner, plans, SteadyTimer(tuner), cores)
            report.collect(layers, measure, partial(write, layers))


def write(layers: Sequence[Linear], compared: Sequence[dict[str, Any]], report: Report) -> None:
    """Write the figures of the first layers, as many as were compared."""
    names = [describe(layer) for layer in layers[: len(compared)]]
    rows = [
        [f"{name} (unsteady)" if entry["unsteady_rounds"] else name, *(entry[f"{series}_us"] for series in SERIES)]
        for name, entry in zip(names, compared, strict=True)
    ]
    summary = {
        "cpu_speed_over_ort1": geometric_mean(entry["ort1_us"] / entry["cpu_us"] for entry in compared),
        "gpu_speed_over_cpu": geometric_mean(entry["cpu_us"] / entry["gpu_us"] for entry in compared),
        "planned_speed_over_ort2": geometric_mean(entry["ort2_us"] / entry["planned_us"] for entry in compared),
    }
    header = ("layer", "CPU µs", "GPU µs", "co-executed µs", "ONNX Runtime 1 thread µs", "2 threads µs")
    text = markdown_table(header, rows) + "\n" + "".join(f"- {key}: {value:.3g}\n" for key, value in summary.items())

    def draw(axes: Any) -> None:
        series = {name: [entry["ort1_us"] / entry[f"{name}_us"] for entry in compared] for name in SERIES}
        bars(axes, names, series, "speed, ONNX Runtime with one thread = 1")

    report.write({"layers": compared, "summary": summary}, text, draw)


if __name__ == "__main__":
    run_main(main)
