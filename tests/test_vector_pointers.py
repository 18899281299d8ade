"""Vectors are accessed through pointers to vectors exactly where their offsets are multiples of the lanes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_coexec.compiler.vector_pointers import _is_multiple, with_vector_pointers

HEAD = "__kernel void f(__global float* restrict p00_x_ptr, __global int* p01_y_ptr, int begin) {"


def test_accesses_of_whole_vectors_go_through_pointers() -> None:
    body = (
        "vstore4((vload4(0, p00_x_ptr + ((begin * 32) + 4)) + v), 0, p01_y_ptr + (convert_int(get_local_id(0)) * 4));"
    )
    assert with_vector_pointers(HEAD + body) == (
        HEAD + "(*(__global int4*)(p01_y_ptr + (convert_int(get_local_id(0)) * 4)))"
        " = ((*(__global float4*)(p00_x_ptr + ((begin * 32) + 4))) + v);"
    )


@pytest.mark.parametrize(
    "access",
    [
        "vload4(0, p00_x_ptr + ((begin * 32) + 2))",
        "vload4(0, p00_x_ptr + ((begin * 6) + (x * 4)))",
        "vload4(0, p00_x_ptr + ((begin * 32) / 3))",
        "vload4(0, p00_x_ptr + (x ? 4 : 8))",
        "vload4(0, _ptr_3 + 0)",
        "vload8(0, p00_x_ptr + 8)",
        "vstore4(v, 0, _ptr_3 + 4)",
        "vstore4(v, 0, p00_x_ptr + (begin + 4))",
    ],
)
def test_other_accesses_stay_as_they_are(access: str) -> None:
    assert with_vector_pointers(HEAD + access) == HEAD + access


INDICES = st.recursive(
    st.one_of(st.integers(0, 40).map(str), st.sampled_from(["x", "y"])),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%", "&", "<<"]), inner).map(
        lambda parts: f"({parts[0]} {parts[1]} {parts[2] if parts[1] != '<<' else '2'})"
    ),
    max_leaves=6,
)


@given(INDICES, st.integers(0, 50), st.integers(0, 50))
def test_what_counts_as_a_multiple_is_one(index: str, x: int, y: int) -> None:
    if _is_multiple(index):
        try:
            value = eval(index, {"x": x, "y": y})
        except ZeroDivisionError:
            return
        assert value % 4 == 0
