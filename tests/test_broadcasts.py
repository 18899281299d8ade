"""OpenCL sources become shorter and mean the same."""

import pytest

from tvm_coexec.compiler.broadcasts import with_short_broadcasts


@pytest.mark.parametrize(
    ("source", "short"),
    [
        ("a = ((float4)(f(x, 1), f(x, 1), f(x, 1), f(x, 1)));", "a = ((float4)(f(x, 1)));"),
        ("((int2)(0, 1)) + ((int2)(7, 7))", "((int2)(0, 1)) + ((int2)(7))"),
        ("((float2)((((float2)(x, x))).s0, (((float2)(x, x))).s0))", "((float2)((((float2)(x))).s0))"),
        ("((float8)(v4, v4))", "((float8)(v4, v4))"),
        ("(float4)(a, a, a, a)", "(float4)(a, a, a, a)"),
        ("", ""),
    ],
)
def test_a_vector_of_one_number_names_it_once(source: str, short: str) -> None:
    assert with_short_broadcasts(source) == short
