"""TFLite operators become Relax bindings, one operator after another.

Images lie channels last in such a file, and layers expect them channels first. So every tensor may be known in two
orders of its axes, of which one is a transpose of the other: operators on images read and make the one, those that
name axes of the file's own order the other, and those that work on each element, or along an axis, go on in the order
in which their operands are. Transposes are left only where the two kinds meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import IRModule, ir, relax, tirx

from tvm_coexec.errors import ModelError, last_line
from tvm_coexec.frontends.relax.calls import static_type
from tvm_coexec.frontends.relax.opaque import computed
from tvm_coexec.frontends.trace import Source, axis_within, check_size

from .file import TYPES_OF_ARRAYS, FileOperator, FileTensor, TfliteFile
from .refused import check_operators

CHANNELS_FIRST = (0, 3, 1, 2)
"""The file's axes of an image in the order that layers expect."""
_CHANNELS_LAST = (0, 2, 3, 1)

_INTEGER_RANGES = {name: (np.iinfo(name).min, np.iinfo(name).max) for name in ("int8", "int16", "uint8")}
_KEEPING = (
    *("BATCH_TO_SPACE_ND", "CONCATENATION", "DEPTH_TO_SPACE", "EXPAND_DIMS", "GATHER", "GATHER_ND", "MAXIMUM"),
    *("MAX_POOL_2D", "MINIMUM", "MIRROR_PAD", "PACK", "PAD", "READ_VARIABLE", "REDUCE_MAX", "REDUCE_MIN", "RELU"),
    *("RESHAPE", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "SELECT_V2", "SLICE", "SPACE_TO_BATCH_ND"),
    *("SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE", "UNPACK"),
)
"""Operators that make no other numbers than they read, and 0."""
_PADDING = ("PAD", "PADV2")


@dataclass(frozen=True)
class Converter:
    """How the operators of one kind are written.

    Attributes
    ----------
    write
        Makes the expressions of the operator's results.
    order
        The order of axes that it reads and makes: ``first`` (channels), ``file`` or ``either``.
    is_whole
        Whether what it writes is of use only as one, and is computed whole.
    """

    write: Callable[[Conversion], relax.Expr | Sequence[relax.Expr]]
    order: str
    is_whole: bool = False


@dataclass
class Imported:
    """A file as a Relax module, and what its variables are called in the file.

    Other variables are steps on the way to the next that has a name; steps to those in ``wholes`` mean nothing alone.
    """

    module: IRModule
    outputs: list[tuple[str, relax.Expr]]
    values: dict[relax.Var, str]
    sources: dict[relax.Var, Source]
    wholes: set[relax.Var]


def import_file(file: TfliteFile, converters: Callable[[TfliteFile, FileOperator], Converter]) -> Imported:
    """Import a file; ``converters`` has one for each of its operators.

    Raises
    ------
    ModelError
        For an operator that cannot be imported, naming it and what is wrong.
    """
    importer = Importer(file, converters)
    parameters = [importer.parameter(file.tensors[index]) for index in file.inputs]

    def results() -> list[relax.Expr]:
        for operator in file.operators:
            importer.add(operator)
        return [importer.output(file.tensors[index]) for index in file.outputs]

    values = _written(importer.builder, parameters, results)
    outputs = list(zip(file.output_names, values, strict=True))
    return Imported(importer.builder.get(), outputs, importer.names, importer.sources, importer.wholes)


class Importer:
    """Knows the expressions of every tensor, in the file's order of axes and with channels first."""

    def __init__(self, file: TfliteFile, converters: Callable[[TfliteFile, FileOperator], Converter]) -> None:
        self.file = file
        self.converters = converters
        self.builder = relax.BlockBuilder()
        self.is_resized = file.is_resized
        self.in_file_order: dict[int, relax.Expr] = {}
        self.channels_first: dict[int, relax.Expr] = {}
        self.stored: dict[int, relax.Expr] = {}
        self.names: dict[relax.Var, str] = {}
        self.sources: dict[relax.Var, Source] = {}
        self.wholes: set[relax.Var] = set()
        self.within = {0}
        """The graphs of the file within which this one runs, and itself."""

    def inside(self, number: int, values: Sequence[relax.Expr]) -> list[relax.Expr]:
        """What another graph of the file makes of some values, written where this one is."""
        if number in self.within:
            raise ModelError(f"graph {number} of the file runs itself, which no module can; convert the model again")
        inner = Importer(self.file.inner(number), self.converters)
        check_operators(inner.file.operators, inner.file.tensors)
        inner.within = self.within | {number}
        inner.builder, inner.is_resized = self.builder, self.is_resized
        inner.names, inner.sources, inner.wholes = self.names, self.sources, self.wholes
        inner.in_file_order |= dict(zip(inner.file.inputs, values, strict=True))
        for operator in inner.file.operators:
            inner.add(operator)
        return [inner.value(index) for index in inner.file.outputs]

    def parameter(self, tensor: FileTensor) -> relax.Var:
        """An input, in the type that the file gives it."""
        shape = self.file.input_shapes[tensor.index]
        variable = relax.Var(f"input{tensor.index}", relax.TensorType(shape, tensor.stored_dtype))
        self.names[variable] = tensor.name
        self.stored[tensor.index] = variable
        return variable

    def output(self, tensor: FileTensor) -> relax.Expr:
        """An output, in the type that the file gives it."""
        value = self.value(tensor.index)
        if tensor.stored_dtype not in TYPES_OF_ARRAYS:
            raise ModelError(
                f"output {tensor.name!r} is {tensor.stored_dtype}; supported are {', '.join(TYPES_OF_ARRAYS)}"
            )
        if tensor.stored_dtype == tensor.dtype:
            return value
        if tensor.quantisation is None:
            return self._emit(relax.op.astype(value, tensor.stored_dtype), tensor, "CAST")
        scale, zero_point = _parameters(tensor)
        stored = relax.op.quantize(value, scale, zero_point, out_dtype=tensor.stored_dtype)
        return self._emit(stored, tensor, "QUANTIZE")

    def constant(self, index: int) -> np.ndarray | None:
        """The numbers of a tensor that depends on no input."""
        value = self.in_file_order.get(index)
        if isinstance(value, ir.GenericConst):
            array: np.ndarray = value.value.numpy()
            return array
        return self.file.tensors[index].constant

    def value(self, index: int) -> relax.Expr:
        """Give a tensor in the file's order of axes."""
        if index not in self.in_file_order:
            self.in_file_order[index] = self._value(self.file.tensors[index])
        return self.in_file_order[index]

    def image(self, index: int) -> relax.Expr:
        """A tensor of four axes with its channels first; axes are put before those that it has, if it has fewer."""
        if index not in self.channels_first:
            self.channels_first[index] = self._image(self.file.tensors[index])
        return self.channels_first[index]

    def shape(self, index: int) -> tuple[int, ...]:
        """Give the extents of a tensor in the file's order of axes."""
        if index in self.channels_first and index not in self.in_file_order:
            shape = static_type(self.channels_first[index].ty, self.file.tensors[index].name)[0]
            return tuple(shape[axis] for axis in _CHANNELS_LAST)
        return static_type(self.value(index).ty, self.file.tensors[index].name)[0]

    def is_image(self, index: int) -> bool:
        """Whether a tensor is known with its channels first."""
        return index in self.channels_first and not isinstance(self.channels_first[index], ir.GenericConst)

    def add(self, operator: FileOperator) -> None:
        """Import an operator; what reads constants alone is computed."""
        converter = self.converters(self.file, operator)
        is_first = converter.order == "first" or (converter.order == "either" and self._prefers_images(operator))
        read = [index for index in operator.inputs if index >= 0]
        try:
            if read and all(self.constant(index) is not None for index in read):
                self._add_constant(Conversion(self, operator, is_first), converter)
                return
            results = _listed(converter.write(Conversion(self, operator, is_first)))
            for index, result in zip(operator.outputs, results, strict=True):
                tensor = self.file.tensors[index]
                made = self._emit(result, tensor, operator.source, converter.is_whole)
                self._set(operator, tensor, made, is_first)
        except ModelError:
            raise
        except Exception as error:  # TVM's operators and converters raise whatever they stumble over
            reason = last_line(error, type(error).__name__)
            raise ModelError(f"{operator.source} cannot be imported ({reason}); replace it in the model") from error

    def _prefers_images(self, operator: FileOperator) -> bool:
        if any(len(self.file.tensors[index].shape) != 4 for index in operator.outputs):
            return False
        if any(map(self.is_image, operator.inputs)):
            return True
        return operator.code in _PADDING and all(map(self._is_read_as_image, operator.outputs))

    def _is_read_as_image(self, index: int) -> bool:
        """Whether operators on images alone read a tensor: around one of these, zeros are a convolution's padding."""
        readers = [operator for operator in self.file.operators if index in operator.inputs]
        orders = {self.converters(self.file, reader).order for reader in readers}
        return orders == {"first"} and index not in self.file.outputs

    def _add_constant(self, conversion: Conversion, converter: Converter) -> None:
        """Compute the results in a module of their own, and know them as constants from now on."""
        surrounding, self.builder = self.builder, relax.BlockBuilder()
        try:
            results = _written(self.builder, [], lambda: _listed(converter.write(conversion)))
            module = self.builder.get()
        finally:
            self.builder = surrounding
        for result in results:
            sizes = getattr(result.ty, "shape", None)  # which are not known where they depend on the numbers
            if isinstance(sizes, relax.ShapeExpr) and all(isinstance(size, tirx.IntImm) for size in sizes):
                check_size(tuple(map(int, sizes)), str(conversion.operator.source))
        if all(isinstance(result, ir.GenericConst) for result in results):
            arrays = [result.value.numpy() for result in results]
        else:
            arrays = computed(module)
        for index, array in zip(conversion.operator.outputs, arrays, strict=True):
            self.in_file_order[index] = relax.const(array, str(array.dtype))

    def _set(self, operator: FileOperator, tensor: FileTensor, result: relax.Expr, is_first: bool) -> None:
        """Know the result of an operator, once it is what the file says."""
        if tensor.quantisation is not None and not self._is_on_grid(operator, tensor):
            result = self._emit(_on_grid(result, tensor), tensor, operator.source, is_whole=True)
        shape, dtype = static_type(result.ty, str(operator.source))
        is_first = is_first and len(shape) == 4
        expected = tuple(tensor.shape[axis] for axis in CHANNELS_FIRST) if is_first else tensor.computed_shape
        if dtype != tensor.dtype or (shape != expected and tensor.has_fixed_shape and not self.is_resized):
            raise ModelError(
                f"{operator.source} makes {dtype} of shape {list(shape)}, where the file has {tensor.dtype} of shape "
                f"{list(expected)}; replace it in the model"
            )
        (self.channels_first if is_first else self.in_file_order)[tensor.index] = result

    def _is_on_grid(self, operator: FileOperator, result: FileTensor) -> bool:
        """Whether an operator only passes on numbers that the result's integers can stand for."""
        if operator.code not in _KEEPING or result.quantisation is None:
            return False
        operands = [self.file.tensors[index] for index in operator.inputs if index >= 0]
        read = [tensor.quantisation for tensor in operands if tensor.is_quantised and tensor.stored is None]
        return all(result.quantisation.is_same(quantisation) for quantisation in read)

    def _value(self, tensor: FileTensor) -> relax.Expr:
        if tensor.constant is not None:
            return relax.const(tensor.constant, tensor.dtype)
        if tensor.index in self.channels_first:
            return self._emit(
                relax.op.permute_dims(self.channels_first[tensor.index], _CHANNELS_LAST), tensor, "TRANSPOSE"
            )
        if tensor.index not in self.stored:
            raise ModelError(f"tensor {tensor.name!r} is read before any operator makes it; convert the model again")
        stored = self.stored[tensor.index]
        if tensor.stored_dtype == tensor.dtype:
            return stored
        if tensor.quantisation is None:
            return self._emit(relax.op.astype(stored, tensor.dtype), tensor, "CAST")
        return self._emit(relax.op.dequantize(stored, *_parameters(tensor)), tensor, "DEQUANTIZE")

    def _image(self, tensor: FileTensor) -> relax.Expr:
        constant = self.constant(tensor.index)
        if constant is not None:
            spread = constant.reshape((1,) * (4 - constant.ndim) + constant.shape)
            return relax.const(spread.transpose(CHANNELS_FIRST), tensor.dtype)
        value = self.value(tensor.index)
        rank = len(value.ty.shape)
        if rank < 4:
            shape = static_type(value.ty, tensor.name)[0]
            value = self._emit(relax.op.reshape(value, (1,) * (4 - rank) + shape), tensor, "RESHAPE")
        return self._emit(relax.op.permute_dims(value, CHANNELS_FIRST), tensor, "TRANSPOSE")

    def _emit(
        self, value: relax.Expr, tensor: FileTensor, operator: str | Source, is_whole: bool = False
    ) -> relax.Expr:
        """Bind an expression to a variable, which is called as the tensor is."""
        if isinstance(value, relax.Var | ir.GenericConst):
            return value
        variable = self.builder.emit(value)
        self.names[variable] = tensor.name
        if is_whole:
            self.wholes.add(variable)
        self.sources[variable] = operator if isinstance(operator, Source) else Source(operator, tensor.name, "tensor")
        return variable


@dataclass
class Conversion:
    """An operator while it is converted: its operands, in the order of axes in which its results are to be."""

    importer: Importer
    operator: FileOperator
    is_first: bool
    options: Any = field(init=False)
    source: Source = field(init=False)

    def __post_init__(self) -> None:
        self.options, self.source = self.operator.options, self.operator.source

    def has(self, position: int) -> bool:
        """Whether there is an operand at this place."""
        return position < len(self.operator.inputs) and self.operator.inputs[position] >= 0

    def tensor(self, position: int) -> FileTensor:
        return self.importer.file.tensors[self.operator.inputs[position]]

    def operand(self, position: int) -> relax.Expr:
        index = self.operator.inputs[position]
        return self.importer.image(index) if self.is_first else self.importer.value(index)

    def operands(self) -> list[relax.Expr]:
        return [self.operand(position) for position in range(len(self.operator.inputs))]

    def shape(self, position: int) -> tuple[int, ...]:
        """Give the extents of an operand in the file's order of axes."""
        return self.importer.shape(self.operator.inputs[position])

    def constant(self, position: int) -> np.ndarray:
        """The numbers of an operand that has to be constant."""
        index = self.operator.inputs[position]
        array = self.importer.constant(index)
        if array is None:
            raise ModelError(
                f"{self.source} reads {self.importer.file.tensors[index].name!r}, which depends on the model's inputs; "
                "make it a constant"
            )
        return array

    def integers(self, position: int) -> list[int]:
        return [int(number) for number in self.constant(position).reshape(-1)]

    def new_shape(self) -> list[int]:
        """What RESHAPE is told, by its second operand or in its options."""
        options = self.options
        return self.integers(1) if self.has(1) else [options.NewShape(i) for i in range(options.NewShapeLength())]

    def moved(self, position: int, axes: Sequence[int]) -> relax.Expr:
        """Bring an operand, such as weights, to another order of axes than the file's."""
        index = self.operator.inputs[position]
        array = self.importer.constant(index)
        if array is None:
            return relax.op.permute_dims(self.importer.value(index), list(axes))
        return relax.const(np.ascontiguousarray(array.transpose(axes)), str(array.dtype))

    def counted(self, axis: int, rank: int) -> int:
        """Count an axis of the file from the first one."""
        return axis_within(axis, rank, self.source)

    def axis(self, axis: int, rank: int) -> int:
        """Where an axis of the file stands in the operands."""
        axis = self.counted(axis, rank)
        return CHANNELS_FIRST.index(axis) if self.is_first else axis

    def in_order(self, numbers: Sequence[Any]) -> list[Any]:
        """Put one number for each axis of the file in the order of the operands' axes."""
        return [numbers[axis] for axis in CHANNELS_FIRST] if self.is_first else list(numbers)


def _written(
    builder: relax.BlockBuilder, parameters: list[relax.Var], write: Callable[[], list[relax.Expr]]
) -> list[relax.Expr]:
    """Make a function ``main`` of what ``write`` emits; the function is ended even if an operator is refused."""
    refusal: Exception | None = None
    results: list[relax.Expr] = []
    with builder.function("main", parameters):
        try:
            results = [builder.emit(result) if isinstance(result, relax.Call) else result for result in write()]
        except Exception as error:  # whatever it is, TVM complains of a function that has no end
            refusal = error
        builder.emit_func_output(relax.Tuple(results))
    if refusal is not None:
        raise refusal
    return results


def _listed(results: relax.Expr | Sequence[relax.Expr]) -> list[relax.Expr]:
    return list(results) if isinstance(results, list | tuple) else [results]


def _parameters(tensor: FileTensor) -> tuple[relax.Expr, relax.Expr]:
    """Scale and zero point of a tensor that has one of each."""
    quantisation = tensor.quantisation
    if quantisation is None or quantisation.scale.size != 1:
        raise ModelError(f"tensor {tensor.name!r} is no constant and has not one scale; convert the model with one")
    return (
        relax.const(quantisation.scale.item(), "float32"),
        relax.const(int(quantisation.zero_point.reshape(-1)[0]), "int32"),
    )


def _on_grid(value: relax.Expr, tensor: FileTensor) -> relax.Expr:
    """The nearest of those numbers that the integers of a quantised tensor stand for; LiteRT rounds halves up."""
    scale, zero_point = (float(parameter.value.numpy()) for parameter in _parameters(tensor))
    low, high = (bound - zero_point for bound in _INTEGER_RANGES[tensor.stored_dtype])
    scaled = relax.op.multiply(value, relax.const(1 / scale, "float32"))
    steps = relax.op.floor(relax.op.add(scaled, relax.const(0.5, "float32")))
    return relax.op.multiply(relax.op.clip(steps, low, high), relax.const(scale, "float32"))
