"""What a TFLite file holds: tensors with their constants and quantisation, and operators with their options."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tflite

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.fixed import as_constant, check_values, shapes_of_values
from tvm_coexec.frontends.trace import Source, check_model_file
from tvm_coexec.graph import State, check_extents

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_BUILTIN_OPERATORS = {code: name for name, code in vars(tflite.BuiltinOperator).items() if isinstance(code, int)}
_BUILTIN_OPTIONS = {code: name for name, code in vars(tflite.BuiltinOptions).items() if isinstance(code, int)}
_TYPES = {code: name.lower() for name, code in vars(tflite.TensorType).items() if isinstance(code, int)}
_DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError, struct.error)
"""What reading stumbles over where a file is cut or overwritten: the reading library checks nothing."""
_QUANTISED_TYPES = ("int4", "int8", "uint8", "int16", "int32", "int64")
_WIDENED_TYPES = ("float16", "bfloat16", "complex64")
"""Types of which numbers are computed in float32."""
TYPES_OF_ARRAYS = (
    *("float32", "float64", "float16", "bool", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
)
"""Types that inputs and outputs may have."""


@dataclass(frozen=True)
class Quantisation:
    """Integers stand for ``scale · (integer - zero_point)``, with one of both for all or for each place on ``axis``."""

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int

    def real(self, integers: np.ndarray) -> np.ndarray:
        """The numbers that integers stand for."""
        scale, zero_point = (self._along_axis(array, integers.ndim) for array in (self.scale, self.zero_point))
        return ((integers.astype(np.float64) - zero_point) * scale).astype(np.float32)

    def is_same(self, other: Quantisation | None) -> bool:
        """Whether integers stand for the same numbers by both."""
        if other is None:
            return False
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.zero_point, other.zero_point)

    def _along_axis(self, array: np.ndarray, rank: int) -> np.ndarray:
        if array.size == 1:
            return array.reshape(())
        return array.reshape([-1 if axis == self.axis else 1 for axis in range(rank)])


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the file; ``stored`` has its elements, as the file has them, if it is a constant."""

    index: int
    name: str
    shape: tuple[int, ...]
    has_fixed_shape: bool
    stored_dtype: str
    quantisation: Quantisation | None
    stored: np.ndarray | None

    @property
    def is_quantised(self) -> bool:
        return self.quantisation is not None

    @property
    def dtype(self) -> str:
        """The type in which the tensor is computed."""
        is_float = self.is_quantised or self.stored_dtype in _WIDENED_TYPES
        return "float32" if is_float else self.stored_dtype

    @property
    def computed_shape(self) -> tuple[int, ...]:
        """The shape in which the tensor is computed: complex numbers are pairs of real ones."""
        return (*self.shape, 2) if self.stored_dtype == "complex64" else self.shape

    @cached_property
    def constant(self) -> np.ndarray | None:
        """The numbers that a constant stands for."""
        if self.stored is None:
            return None
        if self.stored_dtype == "complex64":
            return self.stored.view(np.float32).reshape(self.computed_shape)
        return self.stored.astype(self.dtype) if self.quantisation is None else self.quantisation.real(self.stored)


@dataclass(frozen=True)
class FileOperator:
    """An operator of the file; ``native`` is what the reading library has for it."""

    code: str
    is_custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    source: Source
    options: Any
    custom_options: bytes
    native: Any = field(repr=False, compare=False)


class TfliteFile:
    """A graph of a TFLite file: the first, or one that an operator of another runs.

    Parameters
    ----------
    number
        Which graph of the file.
    content
        What the file holds, if it was read before.

    Attributes
    ----------
    input_shapes
        The shape of each input, by its tensor's number.
    output_names
        What the outputs are called.
    states
        Inputs that go on from run to run.
    fixed
        The values of inputs that the user made constants.
    is_resized
        Some input has another shape than in the file.

    Raises
    ------
    ModelError
        The file cannot be read, or an input cannot have its shape or its type.
    """

    def __init__(self, path: Path, number: int = 0, content: bytes | None = None) -> None:
        self.path = path
        self._within = f"graph{number}/" if number else ""
        check_model_file(path, "a TFLite")
        self.content = path.read_bytes() if content is None else content
        if self.content[4:8] != b"TFL3":
            raise ModelError(f"{str(path)!r} is no TFLite model; convert it again")
        try:
            self.model = tflite.Model.GetRootAsModel(self.content, 0)
            self.graph = self.model.Subgraphs(number)
            self.inputs, self.outputs = (
                _numbers(side) for side in (self.graph.InputsAsNumpy(), self.graph.OutputsAsNumpy())
            )
            operators = [self.graph.Operators(index) for index in range(self.graph.OperatorsLength())]
            self._made = {number for operator in operators for number in _numbers(operator.OutputsAsNumpy())}
            self.tensors = [self._tensor(index) for index in range(self.graph.TensorsLength())]
            self.operators = [self._operator(index) for index in range(self.graph.OperatorsLength())]
            self._check_numbers()
            if number == 0 and not self.outputs:
                raise ValueError("it has no outputs")
        except _DAMAGE as error:
            raise ModelError(f"{str(path)!r} is a damaged TFLite model ({error}); convert it again") from error
        self.input_shapes = {index: self.tensors[index].shape for index in self.inputs}
        self.output_names = [self.tensors[index].name for index in self.outputs]
        self.states: dict[str, State] = {}
        self.fixed: dict[str, np.ndarray] = {}
        self.is_resized = False

    def inner(self, number: int) -> TfliteFile:
        """Open another graph of the file."""
        return TfliteFile(self.path, number, self.content)

    def bind_inputs(self, shapes: Mapping[str, Sequence[int]], values: Mapping[str, ArrayLike]) -> None:
        """Let inputs have these shapes, by name, instead of the file's, and others be constants."""
        inputs = {self.tensors[index].name: index for index in self.inputs}
        unknown = sorted(set(shapes) - set(inputs), key=str)
        if unknown:
            raise ModelError(
                f"a shape is given for {', '.join(map(repr, unknown))}; the inputs are {', '.join(inputs)}"
            )
        arrays = check_values(values, inputs)
        changeable = (name for name, index in inputs.items() if not self.tensors[index].has_fixed_shape)
        shapes = shapes_of_values(arrays, shapes, changeable)
        for index in self.inputs:
            tensor = self.tensors[index]
            shape = self.input_shapes[index] = tuple(shapes.get(tensor.name, tensor.shape))
            if tensor.stored_dtype not in TYPES_OF_ARRAYS:
                raise ModelError(
                    f"input {tensor.name!r} is {tensor.stored_dtype}; supported are {', '.join(TYPES_OF_ARRAYS)}"
                )
            if len(shape) != len(tensor.shape) or min(shape, default=1) < 1:
                raise ModelError(f"input {tensor.name!r} is {list(tensor.shape)}; the shape {list(shape)} does not fit")
            check_extents(tensor.name, shape)
            self.is_resized |= shape != tensor.shape
        for name, value in arrays.items():
            self._fix(self.tensors[inputs[name]], value)

    def _fix(self, tensor: FileTensor, value: np.ndarray) -> None:
        """Make a constant of an input."""
        shape = self.input_shapes[tensor.index]
        constant = self.fixed[tensor.name] = as_constant(tensor.name, value, tensor.stored_dtype, shape)
        self.tensors[tensor.index] = replace(tensor, shape=shape, stored=constant)
        self.inputs = tuple(index for index in self.inputs if index != tensor.index)
        self.states.pop(tensor.name, None)

    def _check_numbers(self) -> None:
        """Refuse numbers of tensors that there are not; an operand that is left out is -1."""
        count = len(self.tensors)
        made = [number for operator in self.operators for number in operator.outputs]
        read = [number for operator in self.operators for number in operator.inputs if number != -1]
        wrong = [number for number in (*self.inputs, *self.outputs, *made, *read) if not 0 <= number < count]
        if wrong:
            raise ValueError(f"no tensor has the number {wrong[0]}")

    def _tensor(self, index: int) -> FileTensor:
        native = self.graph.Tensors(index)
        shape, dtype = _numbers(native.ShapeAsNumpy()), _TYPES[native.Type()]
        name = native.Name().decode() if native.Name() else f"tensor{index}"
        name = self._within + name  # graphs of a file may give their tensors the same names
        fixed = -1 not in _numbers(native.ShapeSignatureAsNumpy())
        stored = self._stored(index, native, shape, dtype)
        return FileTensor(index, name, shape, fixed, dtype, _quantisation(native, dtype), stored)

    def _stored(self, index: int, native: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
        data = self._data(native.Buffer())
        if native.IsVariable() and dtype in _READERS:
            # a state: a run begins where the first of all does
            return np.zeros(shape, _READERS[dtype](np.zeros(8, np.uint8)).dtype)
        if dtype not in _READERS:
            return None
        if data is None:
            # a constant without elements has no buffer, either: the shape of a scalar is one
            is_constant = 0 in shape and index not in self._made and index not in self.inputs
            return _READERS[dtype](np.zeros(0, np.uint8)).reshape(shape) if is_constant else None
        elements = _READERS[dtype](data)
        sparsity = native.Sparsity()
        return elements[: math.prod(shape)].reshape(shape) if sparsity is None else _dense(sparsity, elements, shape)

    def _data(self, number: int) -> np.ndarray | None:
        """Give the bytes of a buffer; large files have them behind the model itself."""
        buffer = self.model.Buffers(number)
        if buffer.Offset() > 1:
            return np.frombuffer(self.content, np.uint8, buffer.Size(), buffer.Offset())
        return buffer.DataAsNumpy() if number and buffer.DataLength() else None

    def _operator(self, index: int) -> FileOperator:
        native = self.graph.Operators(index)
        entry = self.model.OperatorCodes(native.OpcodeIndex())
        # old files have the code in one field, new ones in the other
        number = max(entry.BuiltinCode(), entry.DeprecatedBuiltinCode())
        is_custom = number == tflite.BuiltinOperator.CUSTOM
        code = (
            (entry.CustomCode() or b"").decode() if is_custom else _BUILTIN_OPERATORS.get(number, f"operator {number}")
        )
        inputs, outputs = _numbers(native.InputsAsNumpy()), _numbers(native.OutputsAsNumpy())
        name = self.tensors[outputs[0]].name if outputs else str(index)
        custom = native.CustomOptionsAsNumpy().tobytes() if native.CustomOptionsLength() else b""
        source = Source(code, name, "custom operator" if is_custom else "tensor")
        return FileOperator(code, is_custom, inputs, outputs, source, _options(native), custom, native)


def _numbers(values: Any) -> tuple[int, ...]:
    """The numbers of a vector, of which the reading library makes 0 if it is absent."""
    return tuple(int(value) for value in values) if isinstance(values, np.ndarray) else ()


def _options(native: Any) -> Any:
    """What an operator is told besides its operands, None if it has no options."""
    kind = getattr(tflite, _BUILTIN_OPTIONS.get(native.BuiltinOptionsType(), ""), None)
    table = native.BuiltinOptions()
    if kind is None or table is None:
        return None
    options = kind()
    options.Init(table.Bytes, table.Pos)
    return options


def _quantisation(native: Any, dtype: str) -> Quantisation | None:
    parameters = native.Quantization()
    if parameters is None or dtype not in _QUANTISED_TYPES or not parameters.ScaleLength():
        return None
    scale = parameters.ScaleAsNumpy().astype(np.float64)
    zero_point = parameters.ZeroPointAsNumpy() if parameters.ZeroPointLength() else np.zeros(1, np.int64)
    return Quantisation(scale, zero_point, parameters.QuantizedDimension())


def _nibbles(data: np.ndarray) -> np.ndarray:
    """Read signed numbers of four bits, the lower half of each byte first."""
    pairs = np.stack([data & 15, data >> 4], axis=-1).reshape(-1).astype(np.int8)
    return np.where(pairs > 7, pairs - 16, pairs).astype(np.int8)


_READERS = {
    name: lambda data, name=name: data.view(name)
    for name in (
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "complex64",
    )
} | {
    "bool": lambda data: data.astype(bool),
    "bfloat16": lambda data: (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32),
    "int4": _nibbles,
}
"""How constants are read from bytes."""


def _dense(sparsity: Any, elements: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of which the file has only the elements that are not zero.

    Levels of nested loops, one an axis and then one for each axis of a block, are either whole or list the places
    at which something is.
    """
    order, block_axes = _numbers(sparsity.TraversalOrderAsNumpy()), _numbers(sparsity.BlockMapAsNumpy())
    positions = [np.zeros(1, np.int64) for _ in order]
    position = np.zeros(1, np.int64)
    sizes = {}
    for depth, axis in enumerate(order):
        level = sparsity.DimMetadata(depth)
        if level.Format() == tflite.DimensionType.DENSE:
            sizes[axis] = level.DenseSize()
            counts, found = np.full(position.size, level.DenseSize()), None
        else:
            segments, found = _vector(level, "ArraySegments"), _vector(level, "ArrayIndices")
            counts = segments[position + 1] - segments[position]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        if found is None:
            position = np.repeat(position, counts) * level.DenseSize() + within
            here = within
        else:
            position = np.repeat(segments[position], counts) + within
            here = found[position]
        positions = [
            np.repeat(position, counts) if done < depth else position for done, position in enumerate(positions)
        ]
        positions[depth] = here
    by_axis = dict(zip(order, positions, strict=True))
    for block, axis in enumerate(block_axes):
        inner = len(shape) + block
        by_axis[axis] = by_axis[axis] * sizes[inner] + by_axis[inner]
    dense = np.zeros(shape, elements.dtype)
    dense[tuple(by_axis[axis] for axis in range(len(shape)))] = elements[position]
    return dense


def _vector(level: Any, name: str) -> np.ndarray:
    """Read the numbers of a level, in the type that the file chose for them."""
    kinds = {code: kind for kind, code in vars(tflite.SparseIndexVector).items() if isinstance(code, int)}
    table, vector = getattr(level, name)(), getattr(tflite, kinds[getattr(level, f"{name}Type")()])()
    vector.Init(table.Bytes, table.Pos)
    values: np.ndarray = vector.ValuesAsNumpy().astype(np.int64)
    return values
