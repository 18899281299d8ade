"""How fast is a whole network on the CPU, on the GPU, on both by the plan, and in the engines that a user would pick?

All are measured in turn, warm, in one run. Engines with one thread run on the CPU's core, those with two threads on the
cores of both sides; each is a process that is stopped while others are measured. A turn is repeated, whosever it is,
where a few small layers, computed by both sides, took longer than at best just before or after. A plan that is one side
alone is timed as that. What a plan expected is predicted or, of a model that the profile was tuned for, what it took
when it was tried.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from networks import NETWORKS, network
from onnx import TensorProto
from peer_process import PeerProcess, engine_cores, save_network
from peers import PEERS, PeerError
from reporting import BrokenOffError, Report, bars, markdown_table, median_us, run_main
from tqdm import tqdm

import tvm_coexec
from tvm_coexec.bench.steadiness import Canary, Turn, Turns
from tvm_coexec.compiler.probes import canary as canary_package
from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import FileFormatError, InputError, ModelError
from tvm_coexec.module.usage import MemoryUse
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.profile import Profile
from tvm_coexec.runtime.device import Device, open_chosen
from tvm_coexec.runtime.module import Module

SPLITS = {"cpu": "cpu", "gpu": "gpu", "coexec": "predicted"}
THREADS = (1, 2)
MEMORY_COLUMNS = ("peak MiB", "activations MiB", "at least MiB")
TURN_US = 250e3
"""What a contender runs for in a round, if that is 2 to 25 runs."""

PATIENCE_S = 120.0
"""What a network's turns may spend on a machine that is unsteady."""

Timer = Callable[[int], Sequence[float]]


@dataclass
class Compared:
    """The figures of one network: samples of every contender, and what became of the engines."""

    name: str
    predicted_us: float
    interval_us: tuple[float, float]
    tried: bool
    syncs: int
    memory: MemoryUse
    same_top1: bool
    max_rel_error: float
    turns: dict[str, list[Turn[Sequence[float]]]] = field(default_factory=dict)
    peer_errors: dict[str, float] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    @property
    def samples_us(self) -> dict[str, list[float]]:
        """All samples of every contender that count."""
        return {name: [us for turn in turns for us in turn.taken] for name, turns in self.turns.items()}

    @property
    def repeated_us(self) -> dict[str, list[list[float]]]:
        """Every turn of a contender that was repeated."""
        return {name: [list(us) for turn in turns for us in turn.repeated] for name, turns in self.turns.items()}

    @property
    def put_off(self) -> dict[str, int]:
        """How often a turn of each contender had to wait for a steady machine."""
        return {name: sum(turn.put_off for turn in turns) for name, turns in self.turns.items()}

    @property
    def unsteady_turns(self) -> dict[str, int]:
        """How many turns of each contender count although the machine was never steady."""
        return {name: sum(not turn.is_steady for turn in turns) for name, turns in self.turns.items()}

    def us(self, contender: str) -> float:
        return median_us(self.samples_us[contender])

    @property
    def peers(self) -> dict[str, dict[str, float]]:
        """Microseconds by engine and number of threads."""
        figures = {
            engine: {
                str(threads): self.us(key) for threads in THREADS if (key := peer_key(engine, threads)) in self.turns
            }
            for engine in PEERS
        }
        return {engine: by_threads for engine, by_threads in figures.items() if by_threads}

    @property
    def memory_sizes(self) -> tuple[int, int, int]:
        """Bytes in the order of ``MEMORY_COLUMNS``."""
        return self.memory.peak_bytes, self.memory.activation_bytes, self.memory.activation_bound_bytes

    @property
    def is_inside(self) -> bool:
        """Whether the network took a time in the interval that its plan expected."""
        low_us, high_us = self.interval_us
        return low_us <= self.us("coexec") <= high_us

    @property
    def speedup(self) -> float:
        """How many times as fast as the faster side alone co-execution is."""
        return min(self.us("cpu"), self.us("gpu")) / self.us("coexec")

    def to_json(self) -> dict[str, Any]:
        samples_us = self.samples_us
        return {
            "name": self.name,
            **{f"{side}_us": self.us(side) for side in SPLITS},
            "predicted_us": self.predicted_us,
            "interval_us": [*self.interval_us],
            "is_inside": self.is_inside,
            "tried": self.tried,
            "speedup": self.speedup,
            "peers": self.peers,
            "max_rel_error": self.max_rel_error,
            "same_top1": self.same_top1,
            "syncs": self.syncs,
            "peak_bytes": self.memory.peak_bytes,
            "activation_bytes": self.memory.activation_bytes,
            "activation_bound_bytes": self.memory.activation_bound_bytes,
            "peer_errors": self.peer_errors,
            "not_measured": self.not_measured,
            "spread_us": {name: list(np.percentile(samples, [10, 90])) for name, samples in samples_us.items()},
            "samples_us": samples_us,
            "repeated_us": self.repeated_us,
            "turns_put_off": self.put_off,
            "unsteady_turns": self.unsteady_turns,
        }


def peer_key(engine: str, threads: int) -> str:
    return f"{engine} {threads}"


def models_named(names: str) -> dict[str, Callable[[], onnx.ModelProto]]:
    """Say how to make each model of a list such as ``resnet18,model.onnx``."""
    models: dict[str, Callable[[], onnx.ModelProto]] = {}
    for name in names.split(","):
        if Path(name).suffix == ".onnx":
            if not Path(name).is_file():
                raise InputError(f"there is no ONNX file {name}")
            models[Path(name).stem] = lambda path=name: _read(path)
        elif name in NETWORKS:
            models[name] = lambda name=name: network(name)
        else:
            raise InputError(
                f"no network named {name!r}: give the path of an ONNX file, or one of {', '.join(NETWORKS)}"
            )
    return models


def _read(path: str) -> onnx.ModelProto:
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path)
    except DecodeError as error:
        raise FileFormatError(f"{path} is not an ONNX file; it may be damaged") from error


def random_inputs(model: onnx.ModelProto, seed: int = 1) -> dict[str, np.ndarray]:
    """Draw normal numbers, or numbers of rows of the table that integer inputs choose from."""
    rng = np.random.default_rng(seed)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        if not all(shape):
            raise ModelError(f"input {value.name!r} has no fixed shape; export the model with one")
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            inputs[value.name] = rng.standard_normal(shape, np.float32)
        else:
            tables = [
                constants[node.input[0]].dims[0]
                for node in model.graph.node
                if node.op_type == "Gather" and node.input[1] == value.name and node.input[0] in constants
            ]
            inputs[value.name] = rng.integers(0, min(tables, default=2), shape)
    return inputs


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest element; engines may leave out axes of length 1."""
    if result.size != expected.size:
        return float("inf")
    difference = np.abs(result.reshape(-1).astype(np.float64) - expected.reshape(-1))
    return float(difference.max() / np.abs(expected).max())


def start_peers(
    folder: Path, cores: Sequence[int], stack: ExitStack, engines: Iterable[str] = PEERS
) -> tuple[dict[str, PeerProcess], dict[str, str]]:
    """Every engine with every number of threads, and why some are not there."""
    started, missing = {}, {}
    for engine in engines:
        for threads in THREADS:
            try:
                process = PeerProcess(engine, folder, threads, cores[:threads])
            except PeerError as error:
                missing[engine] = str(error)
                break
            stack.callback(process.close)
            started[peer_key(engine, threads)] = process
    return started, missing


def measure_in_turn(
    timers: Mapping[str, Timer], rounds: int, steady: Turns[Sequence[float]], bar: tqdm[Any]
) -> Iterator[dict[str, list[Turn[Sequence[float]]]]]:
    """The turns of every contender, a few runs each a round, after each round."""
    repeats = {}
    for name, timer in timers.items():
        repeats[name] = int(np.clip(TURN_US / median_us(timer(2)), 2, 25))
    turns: dict[str, list[Turn[Sequence[float]]]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            bar.set_postfix_str(name)
            turns[name].append(steady.take(partial(timer, repeats[name])))
            bar.update()
        yield {name: list(taken) for name, taken in turns.items()}


def timer_of(module: Module) -> Timer:
    return lambda repeats: module.benchmark(repeats=repeats, warmup=1).latency_us


def compare(
    name: str,
    model: onnx.ModelProto,
    device: Device,
    profile: str,
    cores: Sequence[int],
    rounds: int,
    canary: Canary,
) -> Compared:
    """Measure one network; ``cores`` are the CPU's first, then the other side's."""
    inputs = random_inputs(model)
    modules = {
        side: tvm_coexec.build(model, device=device, profile=profile, split=split) for side, split in SPLITS.items()
    }
    with tempfile.TemporaryDirectory(prefix="tvm-coexec-") as folder, ExitStack() as stack:
        save_network(Path(folder), model, inputs)
        peers, missing = start_peers(Path(folder), cores, stack)
        if "onnxruntime" in missing:
            raise InputError(f"ONNX Runtime gives the results to compare with, but: {missing['onnxruntime']}")
        expected = peers[peer_key("onnxruntime", 1)].output
        results = {side: first_output(module, inputs) for side, module in modules.items()}
        compared = Compared(
            name=name,
            predicted_us=modules["coexec"].plan.total_us,
            interval_us=modules["coexec"].plan.interval_us,
            tried=modules["coexec"].plan.tried,
            syncs=modules["coexec"].sync_count,
            memory=modules["coexec"].memory,
            same_top1=all(np.argmax(result) == np.argmax(expected) for result in results.values()),
            max_rel_error=max(relative_error(result, expected) for result in results.values()),
            peer_errors={key: relative_error(process.output, expected) for key, process in peers.items()},
            not_measured=missing,
        )
        same = same_program(modules)
        timers = {side: timer_of(module) for side, module in modules.items() if not (same and side == "coexec")}
        timers |= {key: process.time_us for key, process in peers.items()}
        with tqdm(total=rounds * len(timers), desc=name, unit="turn", leave=False) as bar:
            try:
                for turns in measure_in_turn(timers, rounds, Turns(canary.is_steady, PATIENCE_S), bar):
                    compared.turns = {**turns, "coexec": turns[same]} if same else turns
            except BaseException as error:
                if compared.turns:
                    raise BrokenOffError(compared) from error
                raise
    return compared


def same_program(modules: Mapping[str, Module]) -> str | None:
    """The side alone that the plan amounts to, if it does: what is one program is timed once, not beside itself."""

    def kernels(module: Module) -> list[tuple[Any, ...]]:
        return [(one.layer, one.cpu_units, one.cpu, one.gpu) for one in module.plan.layers]

    planned = kernels(modules["coexec"])
    return next((side for side in ("cpu", "gpu") if kernels(modules[side]) == planned), None)


def canary_on(device: Device) -> Canary:
    """The chain of small layers that tells whether the machine is steady."""
    facts = device.facts()
    return Canary.of(Module(canary_package(target_for(facts), facts), device))


def first_output(module: Module, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    results = module(**inputs)
    return next(iter(results.values())) if isinstance(results, dict) else results


def table(compared: Sequence[Compared]) -> str:
    """Milliseconds of all contenders, one network a row, and what is known of the runs."""
    peer_names = list(dict.fromkeys(key for one in compared for key in one.turns if key not in SPLITS))
    header = ["network", "CPU ms", "GPU ms", "co-executed ms", "speedup", "expected ms"]
    header += [f"{name.replace(' ', ', ')} threads ms".replace("1 threads", "1 thread") for name in peer_names]
    rows = []
    for one in compared:
        expected = f"{_ms(one.predicted_us)} ({' to '.join(map(_ms, one.interval_us))})"
        expected += " (tried)" if one.tried else ""
        mark = " (unsteady)" if any(one.unsteady_turns.values()) else ""
        row = [one.name, *(_ms(one.us(side)) for side in SPLITS), f"{one.speedup:.2f}×{mark}", expected]
        row += [_ms(one.us(peer)) if peer in one.turns else "none" for peer in peer_names]
        rows.append(row)
    facts = [
        [
            one.name,
            f"{one.max_rel_error:.1e}",
            "same" if one.same_top1 else "different",
            one.syncs,
            sum(map(len, one.repeated_us.values())),
            sum(one.put_off.values()),
            sum(one.unsteady_turns.values()),
            *(f"{size / 2**20:.1f}" for size in one.memory_sizes),
        ]
        for one in compared
    ]
    text = markdown_table(header, rows) + "\n"
    text += f"{sum(one.is_inside for one in compared)} of {len(compared)} took a time in the interval expected.\n\n"
    columns = ["relative error", "top-1", "synchronisations", "turns repeated", "put off", "unsteady", *MEMORY_COLUMNS]
    text += markdown_table(["network", *columns], facts)
    missing = [f"- {one.name}, {engine}: {why}\n" for one in compared for engine, why in one.not_measured.items()]
    return text + ("\nNot measured:\n\n" + "".join(missing) if missing else "")


def _ms(us: float) -> str:
    return f"{us / 1e3:.2f}"


def draw(axes: Any, compared: Sequence[Compared]) -> None:
    """Draw speeds compared with the faster side alone; engines have two threads."""
    series = {"co-executed": [one.speedup for one in compared]}
    for engine in PEERS:
        key = peer_key(engine, 2)
        if any(key in one.turns for one in compared):
            series[f"{engine}, 2 threads"] = [
                min(one.us("cpu"), one.us("gpu")) / one.us(key) if key in one.turns else 0.0 for one in compared
            ]
    bars(axes, [one.name for one in compared], series, "speed, the faster side alone = 1")
    axes.axhline(1, color="black", linewidth=0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", required=True, metavar="DIR", help="a profile made by `tvm-coexec tune`")
    parser.add_argument("--models", required=True, metavar="LIST", help=f"of {', '.join(NETWORKS)}, and ONNX files")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for result.json, result.md, result.png")
    parser.add_argument("--rounds", type=int, default=7, help="times that every contender has its turn (default: 7)")
    options = parser.parse_args()
    models = models_named(options.models)
    if options.rounds < 1:
        raise InputError(f"--rounds must be at least 1, got {options.rounds}")
    with Profile.open(options.profile) as profile:
        facts = profile.facts
    cores = engine_cores(facts)
    device = open_chosen(DeviceChoice.again(facts))
    canary = canary_on(device)

    def compare_named(name: str) -> Compared:
        return compare(name, models[name](), device, options.profile, cores, options.rounds, canary)

    Report(options.out, "Whole networks", facts).collect(list(models), compare_named, write, "network")


def write(compared: Sequence[Compared], report: Report) -> None:
    result = {"models": [one.to_json() for one in compared]}
    report.write(result, table(compared), lambda axes: draw(axes, compared))


if __name__ == "__main__":
    run_main(main)
