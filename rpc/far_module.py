"""A module on a device that is reached by TVM's RPC alone: the C runtime runs it there, and its tensors travel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tvm_coexec.errors import InputError
from tvm_coexec.module.manifest import Manifest, StepSpec
from tvm_coexec.module.package import Package
from tvm_coexec.module.table import block_numbers
from tvm_coexec.module.tensors import Source, TensorSpec
from tvm_coexec.runtime.library import ACTIONS
from tvm_coexec.timing import layers
from tvm_coexec.timing.layers import Benchmark, Event, StepTimes, check_runs
from tvm_coexec.timing.programs import Span
from tvm_coexec.verification import checking

from .far_runtime import FarRuntime

_SHORT_RUN_US = 1000
"""A run of warming up is taken to last so long, since the device is asked for a time instead of a number."""
_OPERANDS, _RESULT = "operands.raw", "result.raw"


class FarProgram:
    """Steps of a module there; see :class:`tvm_coexec.runtime.loaded.Program`, whose methods these are."""

    def __init__(self, runtime: FarRuntime, request: Mapping[str, object]) -> None:
        self._runtime, self._request = runtime, request
        self._spans: list[Span] = []
        self.timeline_is_faithful = False
        """Known once the program has run."""

    def run(self) -> None:
        """Run once."""
        self.run_often(1)

    def run_for(self, warm_ns: int) -> None:
        """Run again and again for so long: the last run counts."""
        self._ask(warm_us=warm_ns // 1000, runs=1)

    def run_warm(self, warmup: int) -> None:
        """Run, and before for about as long as so many short runs."""
        self._ask(warm_us=warmup * _SHORT_RUN_US, runs=2)

    def run_often(self, count: int) -> list[list[Span]]:
        """Run so many times; what happened in each run."""
        return self._ask(warm_us=0, runs=count)

    def spans(self) -> Iterator[Span]:
        """What happened in the last run."""
        return iter(self._spans)

    def _ask(self, **how: int) -> list[list[Span]]:
        answer = self._runtime.ask("program", **self._request, **how)
        self.timeline_is_faithful = ("timeline_is_faithful", "1") in answer
        runs = [[_span(text) for text in value.split(",") if text] for key, value in answer if key == "spans"]
        self._spans = runs[-1]
        return runs


def _span(text: str) -> Span:
    is_gpu, action, part, awaited, start_ns, end_ns = map(int, text.split(":"))
    return Span("gpu" if is_gpu else "cpu", ACTIONS[action], part, awaited, start_ns / 1e3, end_ns / 1e3)


class FarLoaded:
    """A module's memory there; see :class:`tvm_coexec.runtime.loaded.Loaded`, whose methods these are.

    Arrays here stand for its tensors: they are sent by :meth:`publish`, and fetched where a program has run since.
    """

    def __init__(self, runtime: FarRuntime, name: str, manifest: Manifest) -> None:
        self.manifest = manifest
        self._runtime, self._name = runtime, name
        self._specs = {tensor.name: tensor for tensor in manifest.tensors}
        self._numbers = {tensor.name: number for number, tensor in enumerate(manifest.tensors)}
        self._arrays: dict[str, np.ndarray] = {}
        self._stale: set[str] = set()

    def spec(self, name: str) -> TensorSpec:
        return self._specs[name]

    def view(self, name: str) -> np.ndarray:
        """View a tensor's elements as kernels see them: ``[rows, channels]``, or ``[batch, h, w, channels]``."""
        spec = self._specs[name]
        if name not in self._arrays:
            self._arrays[name] = np.zeros(spec.shape, spec.dtype)
        array = self._arrays[name]
        if name in self._stale:
            self._runtime.ask("fetch", module=self._name, tensor=self._numbers[name], file=_RESULT)
            array[...] = np.frombuffer(self._runtime.download(_RESULT), spec.dtype).reshape(spec.shape)
            self._stale.remove(name)
        if spec.image is None:
            return array.reshape(spec.rows, spec.channels)
        batch, h, w, channels = spec.image
        if spec.channels_first:
            return array.reshape(batch, channels, h, w).transpose(0, 2, 3, 1)
        return array.reshape(spec.image)

    def write(self, name: str, array: np.ndarray) -> None:
        """Send a tensor's elements in its user's order."""
        spec = self._specs[name]
        if array.size != math.prod(spec.shape):
            raise InputError(f"input {name!r} has the shape {spec.shape}, an array of {array.shape} was given")
        self._arrays[name] = np.ascontiguousarray(array.reshape(spec.shape), spec.dtype)
        self.publish([name])

    def read(self, name: str) -> np.ndarray:
        """Read a tensor's elements in its user's order."""
        self.view(name)
        return self._arrays[name]

    def publish(self, names: Sequence[str]) -> None:
        """Send what was written to arrays."""
        for name in names:
            self._runtime.upload(self._arrays[name].tobytes(), _OPERANDS)
            self._runtime.ask("fill", module=self._name, tensor=self._numbers[name], file=_OPERANDS)

    def randomize(self, name: str, seed: int) -> None:
        """Have random numbers written there."""
        self._runtime.ask("fill", module=self._name, tensor=self._numbers[name], random=seed)

    def randomize_constants(self, step: StepSpec) -> bool:
        """Have random numbers written there for a step's constants, none of which travels; whether all are numbers."""
        blocks = block_numbers(self.manifest)
        own = [one for one in step.arguments if one.source == Source.constant(step.name, one.source.role)]
        if any(argument.dtype != "float32" for argument in own):
            return False
        for source in dict.fromkeys(argument.source for argument in own):
            self._runtime.ask("fill", module=self._name, block=blocks[source], random=step.seed)
        return True

    def write_constants(self, constants: Mapping[Source, np.ndarray]) -> None:
        """Send constants that the module's file lacks, all in one file."""
        content = [np.ascontiguousarray(array).tobytes() for array in constants.values()]
        self._runtime.upload(b"".join(content), _OPERANDS)
        blocks, offset = block_numbers(self.manifest), 0
        for source, one in zip(constants, content, strict=True):
            self._runtime.ask("fill", module=self._name, block=blocks[source], word=0)  # also what pads them
            self._runtime.ask(
                "fill", module=self._name, block=blocks[source], file=_OPERANDS, offset=offset, bytes=len(one)
            )
            offset += len(one)

    def chain(self, step: int, cpu_units: int, gpu_units: int, count: int = 1, *, timeline: bool = False) -> FarProgram:
        """A program of one step again and again, each time after the one before; sides may leave units out."""
        return self._program(parts=",".join([f"{step}:{cpu_units}:{gpu_units}"] * count), chain=1, timeline=timeline)

    def network(self, *, timeline: bool) -> FarProgram:
        """The program of all steps, as they are divided."""
        return self._program(timeline=timeline)

    def benchmark(self, splits: Sequence[int], *, warmup: int, repeats: int) -> Benchmark:
        """Whole runs after some that do not count, with where the CPU's threads ran."""
        self._stale = {step.output for step in self.manifest.steps}
        answer = dict(
            self._runtime.ask(
                "run", module=self._name, splits=",".join(map(str, splits)), warmup=warmup, repeats=repeats
            )
        )
        threads = (int(core) for core in answer["threads"].split(","))
        return Benchmark(
            tuple(int(one_ns) / 1e3 for one_ns in answer["latency_ns"].split(",")),
            tuple(core if core >= 0 else None for core in threads),
        )

    def _program(self, *, timeline: bool, **parts: object) -> FarProgram:
        self._stale = {step.output for step in self.manifest.steps}
        return FarProgram(self._runtime, {"module": self._name, "timeline": int(timeline), **parts})


class FarModule:
    """What is measured of a module there; see :class:`tvm_coexec.runtime.module.Module`, whose methods these are."""

    def __init__(self, runtime: FarRuntime, name: str, package: Package) -> None:
        self.manifest = package.manifest
        self._loaded = FarLoaded(runtime, name, package.manifest)
        self._splits = [step.cpu_units for step in self.manifest.steps]
        self._unsent: set[int] = set()
        for number, step in enumerate(self.manifest.steps):
            if step.seed is not None:
                self._unsent.add(number)
                if not self._loaded.randomize_constants(step):
                    self._send_constants(number)

    def _send_constants(self, step: int) -> None:
        """Send those that a check computes with; what is only timed does not need them, and they have a long way."""
        if step in self._unsent:
            self._loaded.write_constants(checking.random_constants(self.manifest.steps[step]))
            self._unsent.remove(step)

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        return {name: self._loaded.view(name) for name in self.manifest.inputs}

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self._loaded.spec(name).shape for name in self.manifest.inputs}

    def __call__(self, *arrays: np.ndarray, **named: np.ndarray) -> dict[str, np.ndarray]:
        """Run once; the outputs by name."""
        given = dict(zip(self.manifest.inputs, arrays, strict=False)) | named
        if len(arrays) > len(self.manifest.inputs) or set(given) != set(self.manifest.inputs):
            raise InputError(f"the module's inputs are {', '.join(self.manifest.inputs)}; give each of them once")
        for name, array in given.items():
            self._loaded.write(name, array)
        self._loaded.benchmark(self._splits, warmup=0, repeats=1)
        specs = {name: self._loaded.spec(name) for name in self.manifest.outputs}
        counts = {name: spec.counted_by for name, spec in specs.items() if spec.counted_by is not None}
        results = {name: self._loaded.read(name) for name in specs}
        for name, count in counts.items():
            results[name] = results[name][: int(results[count].item())]
        return {name: array for name, array in results.items() if name not in counts.values()}

    def profile(self, *, warmup: int = 3) -> list[Event]:
        program = self._loaded.network(timeline=True)
        program.run_warm(warmup)
        return layers.timeline(self._loaded, program)

    @property
    def splits(self) -> dict[str, int]:
        return {step.name: units for step, units in zip(self.manifest.steps, self._splits, strict=True)}

    def set_splits(self, splits: Mapping[str, int]) -> None:
        self._splits = [splits.get(name, units) for name, units in self.splits.items()]

    def randomize_inputs(self, seed: int = 0) -> None:
        for index, name in enumerate(self.manifest.inputs):
            if self._loaded.spec(name).dtype == "float32":
                self._loaded.randomize(name, seed + index)

    def benchmark(self, *, repeats: int, warmup: int = 3) -> Benchmark:
        check_runs(repeats, warmup)
        return self._loaded.benchmark(self._splits, warmup=warmup, repeats=repeats)

    def time_halves(self, *, repeats: int, warmup: int = 2) -> list[tuple[list[float], list[float]]]:
        self._loaded.benchmark(self._splits, warmup=0, repeats=1)  # divides it so
        program = self._loaded.network(timeline=True)
        return layers.time_halves(program, len(self._splits), repeats=repeats, warmup=warmup)

    def time_step(
        self, step: int, cpu_units: int, gpu_units: int, *, repeats: int, warmup: int = 2, walls: bool = True
    ) -> StepTimes:
        return layers.time_step(self._loaded, step, cpu_units, gpu_units, repeats=repeats, warmup=warmup, walls=walls)

    def check_step(self, step: int, cpu_units: int, gpu_units: int, *, seed: int = 0) -> float:
        self._send_constants(step)
        return checking.check_step(self._loaded, step, cpu_units, gpu_units, seed=seed)

    def error_bound(self, step: int) -> float:
        return checking.error_bound(self.manifest.steps[step])
