"""How fast one shipped model is on the CPU, on the GPU and on both, and of its own runtime with one and two threads.

All have their turns one after the other, warm; a turn during which the machine was unsteady is repeated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from compare_networks import (
    PATIENCE_S,
    SPLITS,
    THREADS,
    canary_on,
    measure_in_turn,
    peer_key,
    same_program,
    start_peers,
    timer_of,
)
from peer_process import engine_cores, save_network
from peers import PeerError
from reporting import median_us
from tqdm import tqdm

from tvm_coexec.api import build_graph
from tvm_coexec.bench.steadiness import Turns
from tvm_coexec.graph import Graph
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module

HALVES_REPEATS = 5
"""Enough for a share that is shown in whole percents."""


def timed(
    path: Path, graph: Graph, arrays: Sequence[np.ndarray], device: Device, profile: str, rounds: int
) -> dict[str, Any]:
    """Samples of every contender, and the part of the CPU's time that layers take which run whole.

    Parameters
    ----------
    path
        The model's file.
    arrays
        The graph's inputs.
    """
    engine = "litert" if path.suffix == ".tflite" else "onnxruntime"
    modules = {side: build_graph(graph, device, profile=profile, split=split) for side, split in SPLITS.items()}
    for module in modules.values():
        module(*arrays)
    share, canary = opaque_share(modules["cpu"], graph), canary_on(device)
    with tempfile.TemporaryDirectory(prefix="tvm-coexec-") as folder, ExitStack() as stack:
        save_network(Path(folder), path, dict(zip(graph.inputs, arrays, strict=True)))
        peers, missing = start_peers(Path(folder), engine_cores(device.facts()), stack, (engine,))
        if missing:
            raise PeerError(f"{engine}: {missing[engine]}")
        same = same_program(modules)
        timers = {side: timer_of(module) for side, module in modules.items() if not (same and side == "coexec")}
        timers |= {key: process.time_us for key, process in peers.items()}
        with tqdm(total=rounds * len(timers), unit="turn", leave=False) as bar:
            *_, turns = measure_in_turn(timers, rounds, Turns(canary.is_steady, PATIENCE_S), bar)
    if same:
        turns["coexec"] = turns[same]
    samples_us = {name: [us for turn in taken for us in turn.taken] for name, taken in turns.items()}
    return {
        "peer": engine,
        "median_us": {name: median_us(samples) for name, samples in samples_us.items()},
        "peer_us": [median_us(samples_us[peer_key(engine, threads)]) for threads in THREADS],
        "expected_us": modules["coexec"].plan.total_us,
        "opaque_share": share,
        "samples_us": samples_us,
        "repeated_us": {name: [list(us) for turn in taken for us in turn.repeated] for name, taken in turns.items()},
        "unsteady_turns": {name: sum(not turn.is_steady for turn in taken) for name, taken in turns.items()},
    }


def opaque_share(module: Module, graph: Graph) -> float:
    """The part of a module's time, on one side, that layers take which run whole as Relax has them."""
    times_us = [sum(map(median_us, filter(None, halves))) for halves in module.time_halves(repeats=HALVES_REPEATS)]
    whole_us = sum(us for node, us in zip(graph.nodes, times_us, strict=True) if node.layer.op == "opaque")
    return whole_us / sum(times_us)
