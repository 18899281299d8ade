"""The deployable module: call it with numpy arrays, time it, look at its timeline."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from tvm_coexec.errors import FileFormatError, InputError
from tvm_coexec.machine.facts import check_cpu
from tvm_coexec.module.manifest import Manifest
from tvm_coexec.module.package import Package, open_file
from tvm_coexec.module.usage import MemoryUse, activation_bound_bytes
from tvm_coexec.timing import layers
from tvm_coexec.timing.layers import Benchmark, Event, StepTimes, check_runs
from tvm_coexec.verification import checking

from .device import Device, open_device, warn_of_one_core
from .loaded import TIMEOUT_S, Loaded, Program

if TYPE_CHECKING:
    from tvm_coexec.planning.plan import Plan

_LONGEST_TIMEOUT_S = 1e6
"""Eleven days: the C library takes no longer ones."""

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def _in_turn(
    method: Callable[Concatenate[Module, _Given], _Result],
) -> Callable[Concatenate[Module, _Given], _Result]:
    """The method, while no other thread uses the module's device."""

    @functools.wraps(method)
    def served(module: Module, /, *given: _Given.args, **named: _Given.kwargs) -> _Result:
        with module.device.in_turn():
            return method(module, *given, **named)

    return served


class Module:
    """A network on one device, its layers divided between the CPU and the GPU.

    Calls from several threads are served one after the other, as are those of all modules of a device, and each gets
    results of its own. Threads that use :attr:`inputs`, :meth:`run` and :attr:`outputs` have to take turns themselves:
    there is one set of activations.
    """

    def __init__(
        self,
        package: Package,
        device: Device,
        *,
        timeout_s: float = TIMEOUT_S,
        yields: bool = False,
        adapt: bool = False,
        file: IO[bytes] | None = None,
    ) -> None:
        """Put a package on a device, from its open ``file`` if there is one."""
        is_number = isinstance(timeout_s, int | float | np.number) and not isinstance(timeout_s, bool)
        if not (is_number and 0 < timeout_s <= _LONGEST_TIMEOUT_S):
            raise InputError(
                f"timeout_s must be a positive number of seconds, {_LONGEST_TIMEOUT_S:g} at most, got {timeout_s}"
            )
        self.device = device
        with device.in_turn():
            yields = yields or device.shares_core  # else the driver's thread gets no turn
            adapt = adapt and not device.shares_core  # where nothing is divided, nothing can be moved
            self._loaded = Loaded(package, device, file, timeout_s=timeout_s, yields=yields, adapt=adapt)
            for step in package.manifest.steps:
                if step.seed is not None:
                    self._loaded.write_constants(checking.random_constants(step))
        self._package = replace(package, constants=self._loaded.constants(package, file))

    @property
    def manifest(self) -> Manifest:
        """What the module's file says of itself."""
        return self._package.manifest

    @property
    def plan(self) -> Plan:
        """How the layers are divided, and why."""
        from tvm_coexec.planning.plan import Plan

        return Plan.from_json(self.manifest.plan)

    @property
    def mechanism(self) -> str:
        """``svm`` or ``event``."""
        return self.device.mechanism

    @property
    def splits(self) -> dict[str, int]:
        """The CPU's units of each layer."""
        return {step.name: units for step, units in zip(self.manifest.steps, self._loaded.splits, strict=True)}

    @property
    def adaptation(self) -> str:
        """What was moved between the sides since the module was loaded with ``adapt``: a line, then one a layer."""
        done = self._loaded.adaptation
        steps = zip(self.manifest.steps, self._loaded.splits, strict=True)
        moved = [
            f"{step.name}: {step.cpu_units} -> {units} of {step.units} units"
            for step, units in steps
            if units != step.cpu_units
        ]
        pace = f"; lately the CPU took {done.pace:.2f} times as long as the GPU for its part" if done.pace else ""
        trial = ", the last move on trial" if done.is_on_trial else ""
        return "\n".join([f"{done.moves} moves helped{trial}{pace}; the CPU's units in {len(moved)} layers:", *moved])

    @_in_turn
    def set_splits(self, splits: Mapping[str, int]) -> None:
        """Change the CPU's units of some layers; nothing is compiled."""
        names = [step.name for step in self.manifest.steps]
        changed = self._loaded.splits
        for name, cpu_units in splits.items():
            if name not in names:
                raise InputError(f"the module has no layer {name!r}; it has {', '.join(names)}")
            step = self.manifest.steps[names.index(name)]
            if not (isinstance(cpu_units, int | np.integer) and 0 <= cpu_units <= step.units):
                raise InputError(f"layer {name!r} has {step.units} units; the CPU cannot compute {cpu_units} of them")
            changed[names.index(name)] = cpu_units
        self._loaded.set_splits(changed)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs as the model's user sees them."""
        return {name: self._loaded.spec(name).shape for name in self.manifest.inputs}

    @property
    def initial_states(self) -> dict[str, np.ndarray]:
        """Those inputs that go on from run to run, by name, as they are in the first run; see :meth:`next_states`."""
        specs = {state.input: self._loaded.spec(state.input) for state in self.manifest.states}
        return {
            state.input: state.first(specs[state.input].shape, specs[state.input].dtype)
            for state in self.manifest.states
        }

    def next_states(self, results: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The states of the next run, from the results of one: ``module(x, **states)``.

        A model that keeps values from run to run, as TFLite's variables are, is given them as inputs and makes the
        next ones as outputs: a module itself keeps nothing, so that one serves several streams.
        """
        return {state.input: results[state.output] for state in self.manifest.states}

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """Views ``[rows, channels]`` or ``[batch, h, w, channels]`` of the inputs, to be written before :meth:`run`."""
        return {name: self._loaded.view(name) for name in self.manifest.inputs}

    @_in_turn
    def randomize_inputs(self, seed: int = 0) -> None:
        """Write random numbers to all inputs of floats: with what is zero, or was there before, times may differ."""
        rng = np.random.default_rng(seed)
        for view in self.inputs.values():
            if view.dtype.kind == "f":
                view[:] = rng.standard_normal(view.shape, np.float32)

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """Views ``[rows, channels]`` or ``[batch, h, w, channels]`` of the outputs, valid after :meth:`run`."""
        hidden = set(self._counts.values())
        return {name: self._loaded.view(name) for name in self.manifest.outputs if name not in hidden}

    @_in_turn
    def run(self) -> None:
        """Run once on what the inputs hold, copying nothing."""
        self._loaded.run()

    def __call__(self, /, *arrays: np.ndarray, **named: np.ndarray) -> Any:
        """Run the network.

        Parameters
        ----------
        *arrays, **named
            Inputs in the model's order, or by name, of the model's shapes and types.

        Returns
        -------
        The output, or a dict of outputs by name where the model has several.
        """
        bound = self._bind(arrays, named)
        with self.device.in_turn():
            results = self._loaded.call(bound)
        if len(results) == 1:
            return results[0]
        outputs = dict(zip(self.manifest.outputs, results, strict=True))
        for name, count in self._counts.items():
            outputs[name] = outputs[name][: int(outputs[count].item())]
        for count in set(self._counts.values()):
            del outputs[count]
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    @cached_property
    def _counts(self) -> dict[str, str]:
        """Outputs of which only the first rows count, and those that say how many, which the user does not see."""
        specs = {name: self._loaded.spec(name) for name in self.manifest.outputs}
        return {name: spec.counted_by for name, spec in specs.items() if spec.counted_by is not None}

    def _bind(self, arrays: Sequence[np.ndarray], named: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """All inputs in the module's order, each of which is as it has to be."""
        if named or len(arrays) != len(self._wanted):
            arrays = self._in_order(arrays, named)
        for array, (_, shape, dtype) in zip(arrays, self._wanted, strict=True):
            if not _fits(array, shape, dtype):
                return self._checked(arrays)
        return arrays

    def _checked(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The inputs, some of which may be numbers, or not be as they have to be."""
        checked = []
        for given, (name, shape, dtype) in zip(arrays, self._wanted, strict=True):
            # numpy makes scalars of single numbers
            array = np.asarray(given) if isinstance(given, np.generic) else given
            if not _fits(array, shape, dtype):
                what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
                raise InputError(f"input {name!r} must be a {dtype} array of shape {shape}, not {what}")
            checked.append(array)
        return checked

    def _in_order(self, arrays: Sequence[np.ndarray], named: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """What is given for each input, some of it by name."""
        names = self.manifest.inputs
        if len(arrays) > len(names):
            raise InputError(f"the module takes {len(names)} inputs ({', '.join(names)}), {len(arrays)} were given")
        given = dict(zip(names, arrays, strict=False))
        for name, array in named.items():
            if name not in names or name in given:
                raise InputError(f"input {name!r} is unknown or given twice; the inputs are {', '.join(names)}")
            given[name] = array
        missing = [name for name in names if name not in given]
        if missing:
            raise InputError(f"missing input {', '.join(missing)}")
        return [given[name] for name in names]

    @cached_property
    def _wanted(self) -> list[tuple[str, tuple[int, ...], np.dtype]]:
        """Name, shape and type of each input."""
        specs = {name: self._loaded.spec(name) for name in self.manifest.inputs}
        return [(name, tuple(spec.shape), np.dtype(spec.dtype)) for name, spec in specs.items()]

    def _program(self, *, timeline: bool) -> Program:
        return self._loaded.network(timeline=timeline)

    @property
    @_in_turn
    def sync_count(self) -> int:
        """Points of one run at which one processor may wait for the other."""
        return self._program(timeline=False).sync_count

    @property
    @_in_turn
    def memory(self) -> MemoryUse:
        """Memory that the module holds, which the first run makes more, and the least that its activations need."""
        use, bound_bytes = self._loaded.memory, activation_bound_bytes(self.manifest)
        return MemoryUse(use.weight_bytes, use.activation_bytes, use.scratch_bytes, bound_bytes)

    @_in_turn
    def benchmark(self, *, repeats: int = 50, warmup: int = 5) -> Benchmark:
        """Time whole runs on what the inputs hold."""
        check_runs(repeats, warmup)
        latency_us = self._loaded.benchmark_us(repeats=repeats, warmup=warmup)
        return Benchmark(tuple(latency_us), self.device.threads_ran_on())

    @_in_turn
    def profile(self, *, warmup: int = 3) -> list[Event]:
        """What both sides did, and waited for, in one warm run."""
        program = self._program(timeline=True)
        program.run_warm(warmup)
        return layers.timeline(self._loaded, program)

    @property
    @_in_turn
    def timeline_is_faithful(self) -> bool:
        """Whether a run whose halves are timed takes what any other takes: nothing is launched for it in addition."""
        return self._program(timeline=True).timeline_is_faithful

    @_in_turn
    def time_halves(self, *, repeats: int, warmup: int = 1) -> list[tuple[list[float], list[float]]]:
        """Time the halves of all layers as they run in the network.

        Parameters
        ----------
        repeats
            Runs that count.
        warmup
            Runs before each of these.

        Returns
        -------
        For each layer what its CPU half and its GPU half took in microseconds, an entry a run; empty where a side has
        none.
        """
        program = self._program(timeline=True)
        return layers.time_halves(program, len(self.manifest.steps), repeats=repeats, warmup=warmup)

    @_in_turn
    def time_step(
        self, step: int, cpu_units: int, gpu_units: int, *, repeats: int, warmup: int = 2, walls: bool = True
    ) -> StepTimes:
        """Time one layer as it runs inside a network: again and again in one program, all synchronisation included.

        Parameters
        ----------
        step
            Index of the layer.
        cpu_units, gpu_units
            What each side computes; they may leave units out, which times a half alone.
        walls
            Whether walls of the GPU alone are wanted, which take a device with memory of its own a while.
        """
        return layers.time_step(self._loaded, step, cpu_units, gpu_units, repeats=repeats, warmup=warmup, walls=walls)

    @_in_turn
    def check_step(self, step: int, cpu_units: int, gpu_units: int, *, seed: int = 0) -> float:
        """Run one layer on random input, its output poisoned before; the largest relative error against float64.

        The layer's parameters must be random numbers too, as they are in a module for measuring.
        """
        return checking.check_step(self._loaded, step, cpu_units, gpu_units, seed=seed)

    def error_bound(self, step: int) -> float:
        """What :meth:`check_step` may give for a layer if all is right; some kernels are less exact than others."""
        return checking.error_bound(self.manifest.steps[step])

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the module to a file that :func:`load` reads."""
        self._package.write(path)


def load(
    path: str | os.PathLike[str],
    *,
    device: Device | str | None = None,
    cpu_cores: Sequence[int] | None = None,
    gpu_cores: Sequence[int] | None = None,
    timeout_s: float = TIMEOUT_S,
    yields: bool = False,
    adapt: bool = False,
) -> Module:
    """Load a module file.

    Parameters
    ----------
    path
        What :meth:`Module.export` or ``tvm-coexec build`` wrote. While it is loaded, the file may be replaced but not
        written to.
    device
        An open device or any unambiguous part of a device's name; by default the device of the same name as the one
        that the module was built for. A module that was built for the mechanism ``mapped`` asks for that again.
    cpu_cores, gpu_cores
        Cores for either side; see :func:`tvm_coexec.runtime.device.open_device`.
    timeout_s
        Bound on every wait of one processor for the other.
    yields
        Give up the CPU while waiting, at the price of a slower wake-up. On one core both sides always do.
    adapt
        Move units of divided layers toward the side that turns out faster than planned, where runs become shorter by
        it; needs flags. On one core nothing is moved. :attr:`Module.adaptation` says what was.

    Raises
    ------
    FileFormatError
        The file is damaged, of another version, or for another kind of CPU.
    DeviceError
        There is no such device.
    """
    with open_file(path) as file:
        package = Package.map(file, path)
        check_cpu(package.manifest.device)
        if not isinstance(device, Device):
            name = device if device is not None else package.manifest.device.get("name")
            if name is not None and not isinstance(name, str):
                raise FileFormatError("the module names no device; build it again")
            mechanism = "mapped" if package.manifest.device.get("mechanism") == "mapped" else None
            device = open_device(name, cpu_cores=cpu_cores, gpu_cores=gpu_cores, mechanism=mechanism)
        module = Module(package, device, timeout_s=timeout_s, yields=yields, adapt=adapt, file=file)
    if device.shares_core and _uses_both_sides(package):
        warn_of_one_core(device)
        module.set_splits({step.name: step.units if step.cpu else 0 for step in package.manifest.steps})
    return module


def _fits(given: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether an input is an array as it has to be."""
    return isinstance(given, np.ndarray) and given.shape == shape and given.dtype == dtype


def _uses_both_sides(package: Package) -> bool:
    steps = package.manifest.steps
    return any(step.cpu_units for step in steps) and any(step.cpu_units < step.units for step in steps)
