"""An engine in a process of its own, stopped while others are measured: its threads, waiting or spinning, take no core.

Run as a script, this file is that process: ``peer_process.py ENGINE FOLDER THREADS CORE…``. It reads numbers of runs, a
line each, and answers with their times.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from peers import PeerError, prepare

from tvm_coexec.errors import InputError

MODELS, INPUTS = ("model.onnx", "model.tflite"), "inputs.npz"
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
WARM_UP_S = 0.005
"""What runs before any is counted, once at least: a process that was stopped finds its caches and clocks cold."""


def engine_cores(facts: Mapping[str, Any]) -> list[int]:
    """Name the cores of engines with one thread, and with two: one of the CPU's side, then the GPU's of a bench device.

    Beside a GPU, they are more of the CPU's.
    """
    cores = [*facts["cpu_cores"][:1], *(facts["gpu_cores"] or facts["cpu_cores"][1:])]
    if len(cores) < 2:
        raise InputError("engines with two threads need two cores; this machine lends one")
    return cores


def save_network(folder: Path, model: onnx.ModelProto | Path, inputs: Mapping[str, np.ndarray]) -> None:
    """Write what the processes of a network read: an ONNX model, or a copy of an ONNX or TFLite file."""
    if isinstance(model, Path):
        shutil.copy(model, folder / f"model{model.suffix}")
    else:
        onnx.save(model, folder / MODELS[0])
    np.savez(folder / INPUTS, **inputs)


class PeerProcess:
    """A network in an engine, on cores of its own choice.

    Raises
    ------
    PeerError
        The engine is not installed, refuses the network, or dies.
    """

    def __init__(self, engine: str, folder: Path, threads: int, cores: Sequence[int]) -> None:
        self._result = folder / f"{engine}{threads}.npy"
        command = [sys.executable, __file__, engine, str(folder), str(threads), *map(str, cores)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            self._answer()
        except PeerError:
            self.close()
            raise
        self._stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> np.ndarray:
        """What the engine computed."""
        return np.load(self._result)

    def time_us(self, repeats: int) -> list[float]:
        """Microseconds of so many runs, after some that are not counted."""
        self._process.send_signal(signal.SIGCONT)
        try:
            assert self._process.stdin is not None
            print(repeats, file=self._process.stdin, flush=True)
            times: list[float] = self._answer()
        finally:
            self._stop()
        return times

    def _stop(self) -> None:
        """Stop the process, and wait until it has stopped."""
        self._process.send_signal(signal.SIGSTOP)
        with contextlib.suppress(ChildProcessError):  # it died, which the answer tells
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"died with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["times_us"]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    engine, folder, threads, *cores = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # what is stopped would outlive who stopped it
    os.sched_setaffinity(0, map(int, cores))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # engines that print do not disturb the answers
    path = Path(folder)
    with np.load(path / INPUTS) as stored:
        inputs = dict(stored)
    try:
        model = next(path / name for name in MODELS if (path / name).exists())
        prepared = prepare(engine, model, inputs, int(threads))
    except PeerError as error:
        print(json.dumps({"error": str(error)}), file=answers)
        return
    np.save(path / f"{engine}{threads}.npy", prepared.output())
    print(json.dumps({"times_us": []}), file=answers)
    for line in sys.stdin:
        warm_at = time.perf_counter() + WARM_UP_S
        while time.perf_counter() < warm_at:
            prepared.run()
        times_us = []
        for _ in range(int(line)):
            start = time.perf_counter_ns()
            prepared.run()
            times_us.append((time.perf_counter_ns() - start) / 1e3)
        print(json.dumps({"times_us": times_us}), file=answers)


if __name__ == "__main__":
    main()
