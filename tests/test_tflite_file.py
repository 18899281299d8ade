"""What is read of TFLite files: constants of all kinds, and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tflite
from ai_edge_litert import schema_py_generated as schema
from litert import integers, numbers
from tflite_writer import TYPES, Writer

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.tflite import refused, spectra
from tvm_coexec.frontends.tflite.file import TfliteFile
from tvm_coexec.frontends.tflite.model import _CONVERTERS


def read_constant(writer: Writer, constant: int, folder: Path) -> np.ndarray | None:
    x = writer.tensor("x", (2, 3))
    path = folder / "model.tflite"
    path.write_bytes(writer.finish([x], [writer.add("ABS", [x], (2, 3))]))
    return TfliteFile(path).tensors[constant].constant


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "uint8", "int64", "bool"])
def test_constants_of_every_type(dtype: str, tmp_path: Path) -> None:
    writer = Writer()
    array = (numbers(3, 4) * 3).astype(dtype)
    found = read_constant(writer, writer.constant(array), tmp_path)
    assert found is not None and found.dtype == ("float32" if dtype == "float16" else dtype)
    np.testing.assert_array_equal(found, array)


def test_numbers_of_half_a_byte(tmp_path: Path) -> None:
    writer = Writer()
    constant = writer.constant(np.array([0x21, 0xF8, 0x07], np.uint8), [0.5])
    writer.tensors[constant].type, writer.tensors[constant].shape = TYPES["int4"], [5]
    found = read_constant(writer, constant, tmp_path)
    np.testing.assert_array_equal(found, np.float32([0.5, 1, -4, -0.5, 3.5]))


def test_numbers_that_lack_half_their_digits(tmp_path: Path) -> None:
    writer = Writer()
    constant = writer.constant(np.array([0x3F80, 0xC010], np.uint16))
    writer.tensors[constant].type = TYPES["bfloat16"]
    np.testing.assert_array_equal(read_constant(writer, constant, tmp_path), np.float32([1, -2.25]))


def test_integers_with_a_scale_for_each_channel(tmp_path: Path) -> None:
    writer = Writer()
    constant = writer.constant(np.arange(-6, 6, dtype=np.int8).reshape(2, 3, 2), [0.5, 1, 2], axis=1)
    writer.tensors[constant].quantization.zeroPoint = [0, 1, -1]
    expected = (np.arange(-6, 6).reshape(2, 3, 2) - np.array([[0], [1], [-1]])) * np.array([[0.5], [1], [2]])
    np.testing.assert_array_equal(read_constant(writer, constant, tmp_path), expected)


def level(size: int | None = None, segments: list[int] | None = None, indices: list[int] | None = None) -> object:
    """A loop over all of an axis, or over the places that it lists."""
    made = schema.DimensionMetadataT()
    if size is not None:
        made.format, made.denseSize = schema.DimensionType.DENSE, size
        return made
    made.format = schema.DimensionType.SPARSE_CSR
    for name, values in (("Segments", segments), ("Indices", indices)):
        vector = schema.Uint8VectorT()
        vector.values = values
        setattr(made, f"array{name}", vector)
        setattr(made, f"array{name}Type", schema.SparseIndexVector.Uint8Vector)
    return made


def test_rows_of_which_only_some_columns_are_there(tmp_path: Path) -> None:
    writer = Writer()
    constant = writer.constant(np.float16([1, 2, 3]))
    sparsity = writer.tensors[constant].sparsity = schema.SparsityParametersT()
    writer.tensors[constant].shape = [3, 4]
    sparsity.traversalOrder, sparsity.blockMap = [0, 1], []
    sparsity.dimMetadata = [level(3), level(segments=[0, 1, 1, 3], indices=[2, 0, 3])]
    expected = np.array([[0, 0, 1, 0], [0, 0, 0, 0], [2, 0, 0, 3]], np.float32)
    np.testing.assert_array_equal(read_constant(writer, constant, tmp_path), expected)


def test_blocks_of_which_only_some_are_there(tmp_path: Path) -> None:
    """Blocks of two rows by two columns, whose columns are the inner loop."""
    writer = Writer()
    constant = writer.constant(np.arange(1, 13, dtype=np.float32))
    sparsity = writer.tensors[constant].sparsity = schema.SparsityParametersT()
    writer.tensors[constant].shape = [4, 6]
    sparsity.traversalOrder, sparsity.blockMap = [0, 1, 2, 3], [0, 1]
    sparsity.dimMetadata = [level(2), level(segments=[0, 1, 3], indices=[2, 0, 1]), level(2), level(2)]
    expected = np.zeros((4, 6), np.float32)
    expected[:2, 4:] = [[1, 2], [3, 4]]
    expected[2:, :4] = [[5, 6, 9, 10], [7, 8, 11, 12]]
    np.testing.assert_array_equal(read_constant(writer, constant, tmp_path), expected)


def test_a_file_that_was_cut(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("x", (2, 3))
    content = writer.finish([x], [writer.reshaped(x, (3, 2))])
    assert integers(3, 2).tobytes() in content
    path = tmp_path / "model.tflite"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"is a damaged TFLite model \(.*\); convert it again"):
        TfliteFile(path)


def test_what_nothing_imports_is_listed_for_who_has_not_loaded_tvm() -> None:
    from tvm.relax.frontend.tflite.tflite_frontend import ExprTable, OperatorConverter

    names = {name for name, code in vars(tflite.BuiltinOperator).items() if isinstance(code, int)}
    of_tvm = OperatorConverter(None, None, ExprTable(), None).convert_map
    assert names - {*_CONVERTERS, *of_tvm} == {*refused.WITHOUT_CONVERTERS, "CUSTOM"}
    assert {*spectra.CONVERTERS, *spectra.ON_PAIRS} == set(refused.OF_COMPLEX_NUMBERS)
    assert set(_CONVERTERS) - names == set(refused.KNOWN_CUSTOM)
