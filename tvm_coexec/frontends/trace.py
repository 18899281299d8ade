"""A model as a list of elementary operations: what every front end makes, before layers are formed."""

from __future__ import annotations

import errno
import math
import os
import resource
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tvm_coexec.errors import ModelError, cannot_read
from tvm_coexec.graph import State
from tvm_coexec.layers.types import FLOAT32, item_bytes

COMPUTED_WIDER = "what the model has in float16 or bfloat16 is computed in float32"
"""The warning of every front end that widens such a model."""


@dataclass(frozen=True)
class Source:
    """Where an operation stands in the user's model: what errors and nodes call it."""

    operator: str
    name: str
    kind: str

    def __str__(self) -> str:
        return f"{self.operator} ({self.kind} {self.name!r})"


@dataclass(frozen=True)
class OpaqueCall:
    """The text of a Relax module whose ``main`` takes the values ``inputs``, then ``constants``."""

    text: str
    inputs: tuple[str, ...]
    constants: tuple[np.ndarray, ...] = ()


_ON_IMAGES = ("conv2d", "conv2d_transpose", "group_norm", "instance_norm", "local_norm", "pool", "resize")


@dataclass(frozen=True)
class Operation:
    """One elementary operation on whole tensors.

    Attributes
    ----------
    op
        Relax's name without its prefix, such as ``matmul`` or ``gelu``. All operators that keep the elements
        and their order are ``reshape``, those that make maxima or averages of windows are ``pool``.
    inputs
        Names of values or constants.
    output
        Name of the one value that it makes.
    attributes
        ``axes`` of ``mean``, ``max``, ``softmax``, ``layer_norm`` and ``transpose``; ``keep_axes`` of ``mean`` and
        ``max``; ``epsilon`` of ``layer_norm``; ``axis`` of ``concat``; ``padding`` (top, left, bottom, right)
        of ``pad``, or where it is not the zeros around an image ``before``, ``after`` and ``value``; ``padding``,
        ``stride`` and ``dilation`` of ``conv2d`` and ``pool``; ``groups`` of ``conv2d``; ``kind``, ``kernel`` (None:
        the whole image) and ``count_padding`` of ``pool``; ``size``, ``alpha``, ``beta`` and ``bias`` of
        ``local_norm``; ``axis``, ``begin`` and ``count`` of ``slice``, which may drop an axis of which it leaves one
        element; ``cuts`` (axis, begin, step) of ``cut``; ``factors``, or ``scale`` and ``shift``, of ``resize``;
        ``numbers`` of a function that has some; sizes, ``scale`` and ``offsets`` of ``attention`` as its layer has
        them; sizes, ``scale``, ``heads_in_rows`` and ``views`` of ``matrix_product``.
    opaque
        Makes the program that Relax has for the operation, if it has one.
    parts
        What a recognised pattern is in the model, in execution order: computed in its place where no layer can be it.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    source: Source
    attributes: dict[str, Any] = field(default_factory=dict)
    opaque: Callable[[], OpaqueCall] | None = field(default=None, compare=False, repr=False)
    parts: tuple[Operation, ...] = field(default=(), compare=False, repr=False)

    @property
    def is_on_images(self) -> bool:
        """Whether the operation takes its first input as ``[batch, channels, height, width]``."""
        if self.op in ("max", "mean"):
            return self.attributes["axes"] == (2, 3)
        if self.op == "pad":
            return "padding" in self.attributes
        return self.op in _ON_IMAGES or (self.op == "concat" and self.attributes["axis"] == 1)


@dataclass
class Trace:
    """Operations in execution order.

    ``outputs`` pairs the name that the user sees with the value; ``shapes`` holds every input and value,
    ``dtypes`` those that are not float32, ``counts`` the outputs that say how many rows of others count, ``states``
    the inputs that go on from run to run, and ``fixed`` the values of inputs that the user made constants.
    """

    inputs: list[str]
    outputs: list[tuple[str, str]]
    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, np.ndarray]
    operations: list[Operation]
    dtypes: dict[str, str] = field(default_factory=dict)
    counts: dict[str, str] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    fixed: dict[str, np.ndarray] = field(default_factory=dict)

    def scalar(self, name: str) -> float | None:
        """The number that a constant of one element holds; None for all else."""
        constant = self.constants.get(name)
        return float(constant.reshape(())) if constant is not None and constant.size == 1 else None

    def collapsed(self, patterns: Iterable[Operation]) -> Trace:
        """Put patterns in the places of the operations whose results they make."""
        found = {pattern.output: pattern for pattern in patterns}
        operations = [
            replace(found[operation.output], parts=self._between(found[operation.output]))
            if operation.output in found
            else operation
            for operation in self.operations
        ]
        return replace(self, operations=self.without_unused(operations))

    def _between(self, pattern: Operation) -> tuple[Operation, ...]:
        """Find the operations that lead from the inputs of a pattern to its result."""
        needed, parts = {pattern.output}, []
        for operation in reversed(self.operations):
            if operation.output in needed:
                parts.append(operation)
                needed.update(name for name in operation.inputs if name not in pattern.inputs)
        return tuple(reversed(parts))

    def without_unused(self, operations: Iterable[Operation]) -> list[Operation]:
        """Those of ``operations`` that the outputs depend on, in the same order."""
        needed = {value for _, value in self.outputs}
        kept = []
        for operation in reversed(list(operations)):
            if operation.output in needed:
                kept.append(operation)
                needed.update(operation.inputs)
        return kept[::-1]


def claim_name(name: str, taken: set[str]) -> str:
    """``name``, with a number behind it if it is in ``taken``, to which the result is added."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def axis_within(axis: int, rank: int, source: Source) -> int:
    """Count an axis from the first one.

    Raises
    ------
    ModelError
        A tensor of so many axes has none of that number: not everywhere do formats' own checks look.
    """
    if not -rank <= axis < rank:
        raise ModelError(f"{source} has the axis {axis}, of a tensor with {rank} axes; export the model again")
    return int(axis) % rank


def check_model_file(path: Path, kind: str) -> None:
    """Refuse a path at which no file of a ``kind``, such as ONNX, can be read."""
    if not path.exists():
        raise ModelError(f"there is no model file {str(path)!r}; give the path of {kind} file")
    if not path.is_file():
        raise ModelError(f"{str(path)!r} is no file; give the path of {kind} file")
    if not os.access(path, os.R_OK):
        raise ModelError(cannot_read(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES))))


def check_size(shape: tuple[int, ...], owner: str) -> None:
    """Refuse to compute a constant that this process cannot hold twice: a system may end the process that tries."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed_bytes = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed_bytes != resource.RLIM_INFINITY:
        memory_bytes = min(memory_bytes, allowed_bytes)
    if 2 * item_bytes(FLOAT32) * math.prod(shape) > memory_bytes:
        raise ModelError(f"{owner} makes a constant of {math.prod(shape)} elements, more than memory holds; replace it")
