"""A module that the C library has opened on a device: its memory as arrays, and its programs."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tvm_coexec.module.manifest import Manifest
from tvm_coexec.module.package import FileConstants, Package
from tvm_coexec.module.table import block_numbers
from tvm_coexec.module.tensors import Source, TensorSpec
from tvm_coexec.timing.programs import Span

from . import library as c
from .handle import Handle
from .library import library

if TYPE_CHECKING:
    from .device import Device

TIMEOUT_S = 5.0
"""Default bound on every wait of one processor for the other."""

_FIRST_LAUNCH_S = 600.0
"""Bound on a kernel's first launch, for which some drivers compile it: for minutes."""

_LONGEST_CALL_US = 500e3
"""How long a call of the C library takes that times runs, if one is not longer: no signal interrupts it."""

_MOST_RUNS_OF_CALL = 1000
"""Runs that were short are long where others want the cores, too."""


class Program:
    """Steps of a module, each divided at some place, as the C library runs them."""

    def __init__(self, loaded: Loaded, pointer: ctypes.c_void_p, *, is_own: bool) -> None:
        """A program that is not its ``own`` belongs to the module."""
        self._loaded, self._pointer = loaded, pointer.value
        self._handle = Handle("program", pointer, loaded.handle) if is_own else None
        facts = c.ProgramFacts()
        library().coexec_describe_program(self._pointer, facts)
        self.sync_count = int(facts.sync_count)
        self.timeline_is_faithful = bool(facts.timeline_is_faithful)
        self._spans = (c.Span * facts.span_count)()

    def run(self) -> None:
        """Run once; raises where a side waits in vain, or a kernel or OpenCL fails."""
        self._loaded.check(library().coexec_program_run(self._pointer))

    def run_for(self, warm_ns: int) -> None:
        """Run again and again for so long: the last run counts."""
        start_ns = time.perf_counter_ns()
        self.run()
        while time.perf_counter_ns() - start_ns < warm_ns:
            self.run()

    def run_warm(self, warmup: int) -> None:
        """Run, and before so many times without a look at it: that lets caches and queue go cold."""
        for _ in range(warmup + 1):
            self.run()

    def run_often(self, count: int) -> list[list[Span]]:
        """Run so many times; what happened in each run."""
        runs = []
        for _ in range(count):
            self.run()
            runs.append(list(self.spans()))
        return runs

    def spans(self) -> Iterator[Span]:
        """What the CPU did in the last run, in order, and then, with a timeline, the GPU."""
        count = ctypes.c_int32()
        self._loaded.check(library().coexec_spans(self._pointer, self._spans, len(self._spans), count))
        for span in self._spans[: count.value]:
            side, action = "gpu" if span.is_gpu else "cpu", c.ACTIONS[span.action]
            yield Span(side, action, span.part, span.awaited, span.start_ns / 1e3, span.end_ns / 1e3)


class Loaded:
    """A module's code and memory on one device."""

    def __init__(
        self,
        package: Package,
        device: Device,
        file: IO[bytes] | None = None,
        *,
        timeout_s: float,
        yields: bool,
        adapt: bool,
    ) -> None:
        device.check_usable()
        self.device = device
        self.manifest: Manifest = package.manifest
        self._tensors = {tensor.name: tensor for tensor in self.manifest.tensors}
        self._numbers = {tensor.name: number for number, tensor in enumerate(self.manifest.tensors)}
        self._blocks = block_numbers(self.manifest)
        self._results = [(one.shape, np.dtype(one.dtype)) for one in map(self.spec, self.manifest.outputs)]
        self._inputs = ctypes.c_void_p * len(self.manifest.inputs)
        self._outputs = ctypes.c_void_p * len(self.manifest.outputs)
        self._call = library().coexec_call
        self._views: dict[str, np.ndarray] = {}
        timeout_ns, first_launch_ns = (max(int(seconds * 1e9), 1) for seconds in (timeout_s, _FIRST_LAUNCH_S))
        options = c.ModuleOptions(timeout_ns, yields, first_launch_ns, adapt)
        if file is not None:
            self._open(file.fileno(), options)
        else:
            with os.fdopen(os.memfd_create("tvm-coexec"), "w+b") as memory:
                package.write_to(memory)
                memory.flush()
                self._open(memory.fileno(), options)

    def _open(self, descriptor: int, options: c.ModuleOptions) -> None:
        pointer = ctypes.c_void_p()
        opened = self.device.handle
        self.check(library().coexec_module_open_fd(opened.pointer, descriptor, options, pointer))
        self.handle = Handle("module", pointer, opened)

    def check(self, status: int) -> None:
        """Raise what a call has failed by; what hangs is noted, and no later run is begun."""
        if status != c.OK:
            error = c.error_of(status)
            if status == c.GPU_HANGS:
                self.device.hang = str(error)
            raise error

    def view(self, name: str) -> np.ndarray:
        """The elements of a tensor where they lie; see :meth:`TensorSpec.view`."""
        if name not in self._views:
            self._views[name] = self._tensors[name].view(self.block(Source.tensor(name)).view(np.float32))
        return self._views[name]

    def block(self, source: Source) -> np.ndarray:
        """The bytes of the block that holds something, which others may share; the array keeps the module open."""
        data, nbytes = ctypes.c_void_p(), ctypes.c_size_t()
        self.check(library().coexec_block(self.handle.pointer, self._blocks[source], data, nbytes))
        raw = _kept_bytes(nbytes.value).from_address(data.value)
        raw.owner = self.handle
        return np.frombuffer(memoryview(raw), np.uint8)

    def spec(self, name: str) -> TensorSpec:
        return self._tensors[name]

    def write_constants(self, constants: Mapping[Source, np.ndarray]) -> None:
        """Fill memory that no program writes."""
        for source, array in constants.items():
            self.constant(source, array)[...] = array
            self._publish(source)

    def constant(self, source: Source, like: np.ndarray) -> np.ndarray:
        """A constant where it lies in the device's memory, which has the type and the shape of another array."""
        return self.block(source)[: like.nbytes].view(like.dtype).reshape(like.shape)

    def constants(self, package: Package, file: IO[bytes] | None) -> Mapping[Source, np.ndarray]:
        """The package's constants, none of which is kept a second time for an export.

        They are as they lie in the device's memory; those of which something else was made there are in the ``file``
        from which the package is loaded, if it is from one.
        """
        made = {constant.source for constant in package.manifest.constants if constant.winograd}
        alike = {
            source: self.constant(source, array) for source, array in package.constants.items() if source not in made
        }
        if made and file is not None:
            return FileConstants(alike, package.manifest, file)
        return {source: alike.get(source, array) for source, array in package.constants.items()}

    def publish(self, names: Sequence[str]) -> None:
        """Let the device see what was written to tensors while no program ran."""
        for name in names:
            self._publish(Source.tensor(name))

    def _publish(self, source: Source) -> None:
        self.check(library().coexec_publish(self.handle.pointer, self._blocks[source]))

    @property
    def splits(self) -> list[int]:
        """The CPU's units of each step."""
        described, splits = c.Step(), []
        for number in range(len(self.manifest.steps)):
            self.check(library().coexec_describe_step(self.handle.pointer, number, described))
            splits.append(int(described.cpu_units))
        return splits

    @property
    def adaptation(self) -> c.Adaptation:
        """How splits have adapted."""
        described = c.Adaptation()
        library().coexec_describe_adaptation(self.handle.pointer, described)
        return described

    def set_splits(self, cpu_units: Sequence[int]) -> None:
        """Give the CPU so many units of each step; programs of the network are no longer valid."""
        numbers = (ctypes.c_int32 * len(cpu_units))(*cpu_units)
        self.check(library().coexec_set_splits(self.handle.pointer, numbers, len(numbers)))

    def run(self) -> None:
        """Run the network once; see :meth:`Program.run`."""
        status = library().coexec_run(self.handle.pointer)
        if status:
            self.check(status)

    def call(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run the network on arrays for all inputs, in their user's order; copies of all outputs likewise.

        A run has left the caches without this code: every line here costs several times what it costs by itself.
        """
        arrays = [np.ascontiguousarray(array) for array in arrays]
        results = [np.empty(shape, dtype) for shape, dtype in self._results]
        inputs, outputs = self._inputs(*_addresses(arrays)), self._outputs(*_addresses(results))
        status = self._call(self.handle.pointer, inputs, outputs)
        if status:
            self.check(status)
        return results

    def benchmark_us(self, *, warmup: int, repeats: int) -> list[float]:
        """Wall times of whole runs, after some that do not count; Ctrl-C ends many within a second."""
        latency_us: list[float] = []
        count = 1  # which tells how long the next will take
        while count:
            latency_ns = (ctypes.c_int64 * count)()
            self.check(library().coexec_benchmark(self.handle.pointer, warmup, count, latency_ns))
            latency_us += [one_ns / 1e3 for one_ns in latency_ns]
            warmup, fitting = 0, int(_LONGEST_CALL_US * count / max(sum(latency_us[-count:]), 1.0))
            count = min(repeats - len(latency_us), max(1, fitting), _MOST_RUNS_OF_CALL)
        return latency_us

    def network(self, *, timeline: bool) -> Program:
        """The program of all steps, for their present splits; with a ``timeline`` every command of the GPU is timed."""
        pointer = ctypes.c_void_p()
        flags = c.TIMELINE if timeline else 0
        self.check(library().coexec_network_program(self.handle.pointer, flags, pointer))
        return Program(self, pointer, is_own=False)

    def chain(self, step: int, cpu_units: int, gpu_units: int, count: int = 1, *, timeline: bool = False) -> Program:
        """A program of one step again and again, each time after the one before; sides may leave units out."""
        parts = (c.Part * count)(*[c.Part(step, cpu_units, gpu_units)] * count)
        flags = c.CHAIN | (c.TIMELINE if timeline else 0)
        pointer = ctypes.c_void_p()
        self.check(library().coexec_prepare(self.handle.pointer, parts, count, flags, pointer))
        return Program(self, pointer, is_own=True)

    @property
    def memory(self) -> c.Memory:
        """Bytes that the module holds."""
        use = c.Memory()
        library().coexec_memory_use(self.handle.pointer, use)
        return use


def _addresses(arrays: Sequence[np.ndarray]) -> list[int]:
    """Where arrays begin; ``array.ctypes`` and the array interface take longer."""
    try:
        return [_address(_begin(array)) for array in arrays]  # type: ignore[arg-type]
    except (TypeError, ValueError):  # one is read-only, or empty
        return [int(array.__array_interface__["data"][0]) for array in arrays]


_address, _begin = ctypes.addressof, ctypes.c_char.from_buffer


@cache
def _kept_bytes(count: int) -> Any:
    """The type of so many bytes, which can keep what they lie in."""
    return type("KeptBytes", (ctypes.c_char * count,), {})
