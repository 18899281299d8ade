"""What is measured for a request: the checked times of a module's layers, of whole runs, and of networks in turn.

It is the same where a module runs beside this code and where it runs behind a server that has none of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from tvm_coexec.bench.steadiness import Canary, Turns
from tvm_coexec.errors import DeviceError, KernelError
from tvm_coexec.runtime.module import Benchmark
from tvm_coexec.timing.layers import StepTimes

_PATIENCE_S = 60.0
"""What a request may spend on a machine that is unsteady: its session must not end before it. Where that was in vain
the session's next one may spend half as much: a machine that others use all day would else be waited for each time."""

_TrialTimes = tuple[Sequence[float], Sequence[tuple[list[float], list[float]]]]
"""The times of whole runs, and those of each layer's halves."""


class DeviceFaultError(DeviceError):
    """The device is at fault, whatever the module is."""


class WrongResultError(KernelError):
    """A kernel computes something else than its layer."""


class Measurable(Protocol):
    """What is asked of a module; see :class:`tvm_coexec.runtime.module.Module`."""

    @property
    def splits(self) -> dict[str, int]: ...
    def set_splits(self, splits: Mapping[str, int]) -> None: ...
    def randomize_inputs(self) -> None: ...
    def benchmark(self, *, repeats: int, warmup: int = 3) -> Benchmark: ...
    def time_halves(self, *, repeats: int) -> list[tuple[list[float], list[float]]]: ...
    def time_step(
        self, step: int, cpu_units: int, gpu_units: int, *, repeats: int, walls: bool = True
    ) -> StepTimes: ...
    def check_step(self, step: int, cpu_units: int, gpu_units: int, *, seed: int) -> float: ...
    def error_bound(self, step: int) -> float: ...


class Measuring(ABC):
    """The functions of one session, each of which takes a request and gives JSON values."""

    def __init__(self) -> None:
        self._canary: Canary | None = None
        self._patience_s = _PATIENCE_S

    @abstractmethod
    def facts(self, request: Any) -> dict[str, Any]:
        """Everything that a measurement on the device depends on."""

    @abstractmethod
    def load(self, name: str) -> Measurable:
        """The module that was uploaded under a name."""

    def measure(self, request: Any) -> dict[str, Any]:
        """Check and time one layer of an uploaded module at each of the request's points."""
        module = self.load(request["module"])
        worst = _check(module, request) if request["check"] else None
        return {
            "points": [_time(module, request, point) for point in request["points"]],
            "max_rel_error": worst,
        }

    def run(self, request: Any) -> dict[str, Any]:
        """Time whole runs of an uploaded module, divided in each of the request's ways."""
        module, times_us = self.load(request["module"]), []
        for splits in request["splits"]:
            module.set_splits(splits)
            times_us.append(list(module.benchmark(repeats=request["repeats"]).latency_us))
        return {"latency_us": times_us}

    def run_trials(self, request: Any) -> list[dict[str, Any]]:
        """Time whole runs of uploaded modules, and their halves, in turn, on random inputs."""
        modules = [self.load(name) for name in request["modules"]]
        for module in modules:
            module.randomize_inputs()
        answers: list[dict[str, Any]] = [
            {"latency_us": [], "halves_us": [([], []) for _ in module.splits]} for module in modules
        ]
        turns: Turns[_TrialTimes] = Turns(self._steadiness(request["canary"]), self._patience_s)
        order = list(zip(modules, answers, strict=True))
        for _ in range(request["rounds"]):
            for module, answer in order:
                latency_us, halves_us = turns.take(partial(_try_once, module, request)).taken
                answer["latency_us"] += latency_us
                for kept, new in zip(answer["halves_us"], halves_us, strict=True):
                    for side in (0, 1):
                        kept[side].extend(new[side])
            order.reverse()
        self._patience_s = _PATIENCE_S if turns.is_patient else self._patience_s / 2
        return answers

    def _steadiness(self, name: str | None) -> Callable[[], bool]:
        """Tells whether a bench device is steady; the session's first canary knows its best ever since."""
        if name is None:
            return lambda: True
        if self._canary is None:
            self._canary = Canary.of(self.load(name))
        return self._canary.is_steady


def _try_once(module: Measurable, request: Any) -> _TrialTimes:
    """Run one turn of a module."""
    latency_us = module.benchmark(repeats=request["repeats"], warmup=1).latency_us
    return latency_us, module.time_halves(repeats=request["timelines"])


def _check(module: Measurable, request: Any) -> float:
    worst, bound = 0.0, module.error_bound(request["step"])
    for cpu_units, gpu_units in dict.fromkeys((point["cpu_units"], point["gpu_units"]) for point in request["points"]):
        error = module.check_step(request["step"], cpu_units, gpu_units, seed=request["seed"])
        if not error <= bound:
            raise WrongResultError(
                f"the result with {cpu_units} CPU and {gpu_units} GPU units is wrong by {error:.2g}, the bound is"
                f" {bound:g}; choose other variants"
            )
        worst = max(worst, error)
    return worst


def _time(module: Measurable, request: Any, point: Any) -> dict[str, Any]:
    cpu_units, gpu_units = point["cpu_units"], point["gpu_units"]
    times = module.time_step(request["step"], cpu_units, gpu_units, repeats=point["repeats"], walls=request["walls"])
    return {
        "cpu_units": cpu_units,
        "gpu_units": gpu_units,
        "cpu_us": times.cpu_us,
        "gpu_us": times.gpu_us,
        "wall_us": times.wall_us,
    }
