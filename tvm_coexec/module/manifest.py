"""What a module file says about itself: tensors, constants, steps and their kernels. Plain data, checked on reading."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tvm_coexec.errors import FileFormatError
from tvm_coexec.graph.dependencies import Read, network_reads
from tvm_coexec.layers import IMAGE_WIDTH, TILE, ImageLayout, grid_for

from .tensors import TAPS, ConstantSpec, Memory, Source, TensorSpec, words

FORMAT = "tvm-coexec module"
VERSION = 17
"""Counts up with every change after which a release would misread what another wrote."""

_MOST_WORDS = 2**40
"""The largest tensor that is believed: what is damaged may ask for any."""


@dataclass(frozen=True)
class ArgumentSpec:
    """A kernel's buffer: its role, what fills it, the shape and type it expects, and whether it is read as an image."""

    role: str
    source: Source
    shape: tuple[int, ...]
    dtype: str = "float32"
    is_image: bool = False

    @property
    def memory_words(self) -> int:
        """Words of four bytes that hold what fills the buffer; those of an image's last row are all there."""
        count = words(math.prod(self.shape), self.dtype)
        return count + -count % (4 * IMAGE_WIDTH) if self.is_image else count


@dataclass(frozen=True)
class LaunchSpec:
    """One kernel of a half: its symbol and arguments, and its launch geometry (OpenCL alone).

    ``grid`` is multiplied by the units on ``unit_axis``, if there is one, and a work-group there computes so many
    ``together``. The ``entry`` says how it is called: a function of the ``cpu``, a plain ``kernel``, one that awaits
    and reports a ``step``, or the case ``chained`` of the one entry of all ``chained`` kernels.
    """

    symbol: str
    arguments: tuple[ArgumentSpec, ...]
    grid: tuple[int, int] = (1, 1)
    group: tuple[int, int] = (1, 1)
    unit_axis: int | None = 0
    together: int = 1
    entry: str = "kernel"
    chained: int = 0

    @property
    def function(self) -> str:
        """The name of the entry in the code."""
        if self.entry == "cpu":
            return f"__tvm_ffi_{self.symbol}"
        return f"{self.symbol}_kernel" if self.entry == "kernel" else f"{self.symbol}_step"

    def grid_for(self, units: int) -> tuple[int, int]:
        """Count the work-groups on both axes for a number of units."""
        return grid_for(self.grid, self.unit_axis, units, self.together)

    def sizes(self, units: int) -> tuple[int, int]:
        """Count the work-items on both axes for a number of units."""
        columns, lines = self.grid_for(units)
        return columns * self.group[0], lines * self.group[1]


@dataclass(frozen=True)
class HalfSpec:
    """A compiled half: its kernels run one after the other."""

    variant: dict[str, Any]
    launches: tuple[LaunchSpec, ...]


@dataclass(frozen=True)
class StepSpec:
    """One layer: its ``axis`` says whether units are ``unit_channels`` channels, ``unit_lines`` lines or row blocks.

    Of ``local_inputs`` a unit needs only the same unit, if the step that writes them is divided in the same units.
    The parameters of a step with a ``seed`` are not stored: in a module for measuring they are random numbers.
    """

    name: str
    layer: dict[str, Any]
    units: int
    axis: str
    cpu_units: int
    inputs: tuple[str, ...]
    output: str
    cpu: HalfSpec | None
    gpu: HalfSpec | None
    seed: int | None = None
    local_inputs: tuple[str, ...] = ()
    unit_channels: int = TILE
    unit_lines: int | None = None

    def makes(self, argument: ArgumentSpec) -> bool:
        """Whether what fills an argument is in no file: scratch, or a constant that follows from the seed."""
        source = argument.source
        is_own = source == Source.constant(self.name, source.role)
        return source.kind == "scratch" or (is_own and self.seed is not None)

    @property
    def arguments(self) -> Iterator[ArgumentSpec]:
        """The arguments of all kernels of both halves."""
        for half in (self.cpu, self.gpu):
            for launch in half.launches if half else ():
                yield from launch.arguments


def lifetimes(tensors: Iterable[TensorSpec], steps: Iterable[StepSpec]) -> dict[str, tuple[int, int]]:
    """Give for each tensor that is no slice the first and the last step, from 1, that touch it or its slices.

    What no step writes, an input, is there from 0 on.
    """
    outermost = {tensor.name: tensor.outermost for tensor in tensors}
    lives = dict.fromkeys(outermost.values(), (0, 0))
    for number, step in enumerate(steps, 1):
        for name in {outermost[name] for name in (step.output, *step.inputs)}:
            first, _ = lives[name]
            lives[name] = (first or (number if name == outermost[step.output] else 0), number)
    return lives


@dataclass(frozen=True)
class StateSpec:
    """An input that goes on from run to run: the output that it is in the next, and what it is in the first.

    ``initial`` has all elements one after the other, or the one that all of them are.
    """

    input: str
    output: str
    initial: tuple[float, ...]

    @classmethod
    def of(cls, name: str, output: str, initial: np.ndarray) -> StateSpec:
        values = initial.reshape(-1).tolist()
        return cls(name, output, tuple(values[:1] if len(set(values)) == 1 else values))

    def first(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """The input of the first run."""
        elements = np.array(self.initial, dtype)
        return np.full(shape, elements) if elements.size == 1 else elements.reshape(shape)


@dataclass(frozen=True)
class Manifest:
    """Everything but the code and the constants."""

    device: dict[str, Any]
    tensors: tuple[TensorSpec, ...]
    constants: tuple[ConstantSpec, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[StepSpec, ...]
    plan: dict[str, Any]
    states: tuple[StateSpec, ...] = ()

    def to_text(self) -> str:
        """JSON, of which :meth:`from_json` reads the fields."""
        fields = {"format": FORMAT, "version": VERSION, **_fields(self)}
        return json.dumps(fields, separators=(",", ":"), default=_fields)

    @classmethod
    def from_json(cls, fields: Any) -> Manifest:
        """Read and check; :class:`FileFormatError` names what is wrong."""
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise FileFormatError("this is no tvm-coexec module; make one with `tvm-coexec build`")
        if fields.get("version") != VERSION:
            raise FileFormatError(
                f"the module has format version {fields.get('version')}, this release reads {VERSION}; build it again"
            )
        try:
            manifest = _read(cls, {key: value for key, value in fields.items() if key not in ("format", "version")})
            manifest._check_sources()
            manifest._check_sizes()
            manifest._check_states()
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise FileFormatError(f"the module's manifest is damaged ({error}); build the module again") from None
        if not isinstance(manifest.device, dict) or not isinstance(manifest.plan, dict):
            raise FileFormatError("the module's manifest is damaged (no device or no plan); build the module again")
        return manifest

    @cached_property
    def word_counts(self) -> dict[Source, int]:
        """Count the words of all that kernels touch: enough for the padding of every kernel that touches it."""
        counts = {Source.tensor(tensor.name): tensor.memory_words for tensor in self.tensors}
        counts |= {constant.source: constant.memory_words for constant in self.constants}
        for step in self.steps:
            for argument in step.arguments:
                counts[argument.source] = max(counts.get(argument.source, 0), argument.memory_words)
        return counts

    def tensor_words(self) -> dict[str, int]:
        """Count the words of all tensors, by their names; see :attr:`word_counts`."""
        return {source.owner: count for source, count in self.word_counts.items() if source.kind == "tensor"}

    def memory_of(self) -> dict[Source, Memory]:
        """Where all lies that kernels touch: in a storage buffer, or in memory of its own."""
        buffers = {Source.tensor(tensor.name): tensor.buffer for tensor in self.tensors if tensor.buffer is not None}
        return {source: buffers.get(source, source) for source in self.word_counts}

    def memory_words(self) -> dict[Memory, int]:
        """Count the words of each piece of memory: enough for all that lies there."""
        counts, words_of = self.word_counts, dict[Memory, int]()
        for source, memory in self.memory_of().items():
            words_of[memory] = max(words_of.get(memory, 0), counts[source])
        return words_of

    def reads(self) -> list[tuple[Read, ...]]:
        """Give for each step those that it has to wait for: whose outputs it reads, or whose memory it overwrites."""
        memory_of = {source.owner: memory for source, memory in self.memory_of().items() if source.kind == "tensor"}
        return network_reads(self.steps, self.parents(), memory_of)

    def parents(self) -> dict[str, tuple[str, ...]]:
        """What each tensor is a slice of, the innermost first."""
        return {tensor.name: tensor.parents for tensor in self.tensors}

    def _check_sizes(self) -> None:
        for tensor in self.tensors:
            if tensor.memory_words > _MOST_WORDS:
                raise FileFormatError(
                    f"the module's manifest is damaged (no memory holds {tensor.name!r} of shape {tensor.shape}); "
                    "build the module again"
                )

        for constant in self.constants:
            if constant.winograd not in (0, 2, 4) or (constant.winograd and constant.shape[1:2] != (TAPS,)):
                raise ValueError(f"no weights of Winograd's are made of {constant.source}")

    def _check_states(self) -> None:
        tensors = {tensor.name: tensor for tensor in self.tensors}
        for state in self.states:
            if state.input not in self.inputs or state.output not in self.outputs:
                raise ValueError(f"state {state.input!r} is no input, or {state.output!r} no output")
            if not isinstance(state.initial, tuple) or not all(isinstance(one, int | float) for one in state.initial):
                raise ValueError(f"state {state.input!r} has first values that are no numbers")
            tensor = tensors[state.input]
            state.first(tensor.shape, tensor.dtype)

    def _check_sources(self) -> None:
        known = {Source.tensor(tensor.name) for tensor in self.tensors}
        known |= {constant.source for constant in self.constants}
        names = [*self.inputs, *self.outputs, *(name for tensor in self.tensors for name in tensor.parents)]
        names += [name for step in self.steps for name in (*step.inputs, step.output)]
        made = [argument.source for step in self.steps for argument in step.arguments if not step.makes(argument)]
        for source in (*map(Source.tensor, names), *made):
            if source not in known:
                raise FileFormatError(f"the module's manifest names {source}, which it does not hold; build it again")


def _fields(part: Any) -> dict[str, Any]:
    """What a part of the manifest says: much faster than ``dataclasses.asdict``, which copies all within it, too."""
    return {one.name: getattr(part, one.name) for one in dataclasses.fields(part)}


_NESTED = {
    "tensors": TensorSpec,
    "states": StateSpec,
    "constants": ConstantSpec,
    "steps": StepSpec,
    "arguments": ArgumentSpec,
    "source": Source,
    "launches": LaunchSpec,
    "layout": ImageLayout,
    "cpu": HalfSpec,
    "gpu": HalfSpec,
}


def _read(cls: Any, fields: Mapping[str, Any]) -> Any:
    values = {}
    for key, value in fields.items():
        nested = _NESTED.get(key)
        if nested is not None and isinstance(value, list):
            values[key] = tuple(_read(nested, item) for item in value)
        elif nested is not None and value is not None:
            values[key] = _read(nested, value)
        else:
            values[key] = tuple(value) if isinstance(value, list) else value
    return cls(**values)
