"""What a session can ask of a device: its facts, the checked times of a module's layers, and those of whole runs.

The functions take and give JSON. They are registered before a session's process is forked, and nothing of OpenCL is
touched until one of them is called in it: OpenCL does not survive a fork.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tvm_coexec.bench.steadiness import Canary, Turns
from tvm_coexec.errors import CoexecError, DeviceError, KernelError, last_line
from tvm_coexec.runtime.device import Device, DeviceChoice

if TYPE_CHECKING:
    from tvm_coexec.runtime.module import Module

FACTS = "tvm_coexec.facts"
MEASURE = "tvm_coexec.measure"
RUN = "tvm_coexec.run"
RUN_TRIALS = "tvm_coexec.run_trials"

_PATIENCE_S = 60.0
"""What a request may spend on a machine that is unsteady: its session must not end before it."""

_TrialTimes = tuple[Sequence[float], Sequence[tuple[list[float], list[float]]]]
"""The times of whole runs, and those of each layer's halves."""

_WORK_PATH = "tvm.rpc.server.workpath"


class _DeviceFaultError(DeviceError):
    """The device is at fault, whatever the module is."""


class SessionFunctions:
    """The functions of one session; the device is opened by the first call that needs it."""

    def __init__(self, choice: DeviceChoice) -> None:
        self._choice = choice
        self._opened: Device | None = None
        self._canary: Canary | None = None

    def facts(self, request: Any) -> dict[str, Any]:
        """Everything that a measurement on the device depends on."""
        return self._device().facts()

    def measure(self, request: Any) -> dict[str, Any]:
        """Check and time one layer of an uploaded module at each of the request's points."""
        module = self._load(request)
        worst = _check(module, request) if request["check"] else None
        return {
            "points": [_time(module, request, point) for point in request["points"]],
            "max_rel_error": worst,
        }

    def run(self, request: Any) -> dict[str, Any]:
        """Time whole runs of an uploaded module, divided in each of the request's ways."""
        module, times_us = self._load(request), []
        for splits in request["splits"]:
            module.set_splits(splits)
            times_us.append(list(module.benchmark(repeats=request["repeats"]).latency_us))
        return {"latency_us": times_us}

    def run_trials(self, request: Any) -> list[dict[str, Any]]:
        """Time whole runs of uploaded modules, and their halves, in turn, on random inputs."""
        modules = [self._load({"module": name}) for name in request["modules"]]
        for module in modules:
            module.randomize_inputs()
        answers: list[dict[str, Any]] = [
            {"latency_us": [], "halves_us": [([], []) for _ in module.splits]} for module in modules
        ]
        turns: Turns[_TrialTimes] = Turns(self._steadiness(request["canary"]), _PATIENCE_S)
        order = list(zip(modules, answers, strict=True))
        for _ in range(request["rounds"]):
            for module, answer in order:
                latency_us, halves_us = turns.take(partial(_run_once, module, request)).taken
                answer["latency_us"] += latency_us
                for kept, new in zip(answer["halves_us"], halves_us, strict=True):
                    for side in (0, 1):
                        kept[side].extend(new[side])
            order.reverse()
        return answers

    def _steadiness(self, name: str) -> Callable[[], bool]:
        """Tells whether the machine is steady; the session's first canary knows its best ever since."""
        if self._canary is None:
            self._canary = Canary.of(self._load({"module": name}))
        return self._canary.is_steady

    def _load(self, request: Any) -> Module:
        import tvm_ffi

        from tvm_coexec.runtime.module import load

        device = self._device()
        if device.hang is not None:  # since an earlier module: this one is innocent, and a new session computes it
            raise _DeviceFaultError(device.hang)
        return load(tvm_ffi.get_global_func(_WORK_PATH)(request["module"]), device=device)

    def _device(self) -> Device:
        if self._opened is None:
            try:
                self._opened = self._choice.open()
            except DeviceError as error:
                raise _DeviceFaultError(str(error)) from None
        return self._opened


def register(choice: DeviceChoice) -> None:
    """Offer the functions to the sessions of this process's RPC server."""
    import tvm_ffi

    functions = SessionFunctions(choice)
    offered = {
        FACTS: functions.facts,
        MEASURE: functions.measure,
        RUN: functions.run,
        RUN_TRIALS: functions.run_trials,
    }
    for name, function in offered.items():
        tvm_ffi.register_global_func(name, _answering(function), override=True)


def _run_once(module: Module, request: Any) -> _TrialTimes:
    """One turn of a module."""
    latency_us = module.benchmark(repeats=request["repeats"], warmup=1).latency_us
    return latency_us, module.time_halves(repeats=request["timelines"])


def _check(module: Module, request: Any) -> float:
    worst, bound = 0.0, module.error_bound(request["step"])
    for cpu_units, gpu_units in dict.fromkeys((point["cpu_units"], point["gpu_units"]) for point in request["points"]):
        error = module.check_step(request["step"], cpu_units, gpu_units, seed=request["seed"])
        if not error <= bound:
            raise KernelError(
                f"the result with {cpu_units} CPU and {gpu_units} GPU units is wrong by {error:.2g}, the bound is"
                f" {bound:g}; choose other variants"
            )
        worst = max(worst, error)
    return worst


def _time(module: Module, request: Any, point: Any) -> dict[str, Any]:
    cpu_units, gpu_units = point["cpu_units"], point["gpu_units"]
    times = module.time_step(request["step"], cpu_units, gpu_units, repeats=point["repeats"], walls=request["walls"])
    return {
        "cpu_units": cpu_units,
        "gpu_units": gpu_units,
        "cpu_us": times.cpu_us,
        "gpu_us": times.gpu_us,
        "wall_us": times.wall_us,
    }


def _answering(function: Callable[[Any], Any]) -> Callable[[str], str]:
    """Wrap a function so that its result, or its error, travels as JSON."""

    def answer(request: str) -> str:
        try:
            return json.dumps({"result": function(json.loads(request))})
        except CoexecError as error:
            return json.dumps({"error": last_line(error), "of_device": isinstance(error, _DeviceFaultError)})
        except Exception as error:  # whatever it is, the caller on the other machine has to learn of it
            traceback.print_exc(file=sys.stderr)
            return json.dumps({"error": f"{type(error).__name__}: {last_line(error)}", "of_device": False})

    return answer
