"""What a module file says about itself: tensors, constants, steps and their kernels. Plain data, checked on reading."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm_coexec.errors import FileFormatError

FORMAT = "tvm-coexec module"
VERSION = 1


@dataclass(frozen=True)
class TensorSpec:
    """An activation as the model's user sees it; kernels see it as rows of whole tiles.

    The last ``channel_axes`` dimensions together are the channels.
    """

    name: str
    shape: tuple[int, ...]
    channel_axes: int = 1

    @property
    def rows(self) -> int:
        return math.prod(self.shape[: len(self.shape) - self.channel_axes])

    @property
    def channels(self) -> int:
        return math.prod(self.shape[len(self.shape) - self.channel_axes :])


@dataclass(frozen=True)
class ConstantSpec:
    """A packed constant. One with a ``seed`` is not stored: measuring fills it with random numbers."""

    name: str
    shape: tuple[int, ...]
    seed: int | None = None


@dataclass(frozen=True)
class ArgumentSpec:
    """A kernel's buffer: its role, the tensor or constant that fills it, and the shape that the kernel expects."""

    role: str
    source: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class HalfSpec:
    """A compiled half: the kernel's symbol and arguments, and the launch geometry of one unit (OpenCL alone)."""

    symbol: str
    arguments: tuple[ArgumentSpec, ...]
    variant: dict[str, Any]
    grid: tuple[int, int] = (1, 1)
    group: tuple[int, int] = (1, 1)
    unit_axis: int = 0


@dataclass(frozen=True)
class StepSpec:
    """One layer: ``axis`` says whether its units are tiles of ``channels`` or blocks of ``rows``."""

    name: str
    layer: dict[str, Any]
    units: int
    axis: str
    cpu_units: int
    inputs: tuple[str, ...]
    output: str
    cpu: HalfSpec | None
    gpu: HalfSpec | None


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

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

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
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise FileFormatError(f"the module's manifest is damaged ({error}); build the module again") from None
        manifest._check_names()
        return manifest

    def _check_names(self) -> None:
        known = {tensor.name for tensor in self.tensors} | {constant.name for constant in self.constants}
        used = [*self.inputs, *self.outputs]
        for step in self.steps:
            used += [*step.inputs, step.output]
            used += [argument.source for half in (step.cpu, step.gpu) if half for argument in half.arguments]
        for name in used:
            if name not in known:
                raise FileFormatError(f"the module's manifest names {name!r}, which it does not hold; build it again")


_NESTED = {
    "tensors": TensorSpec,
    "constants": ConstantSpec,
    "steps": StepSpec,
    "arguments": ArgumentSpec,
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
