"""These operators multiply matrices, with factors and summands."""

from __future__ import annotations

from collections.abc import Mapping

from tvm import relax

from tvm_coexec.errors import ModelError

from .call import Call, Converter


def _gemm(call: Call) -> relax.Expr:
    """The factor comes after the product, as ONNX has it: TVM's comes before, where infinity makes NaN of sums."""
    values, dtype = call.attributes, call.type(0).dtype
    first, second, summand = (call.operand(index) for index in range(3))
    alpha, beta = (float(values.get(name, 1.0)) for name in ("alpha", "beta"))
    if summand is None or beta == 0:  # as in BLAS, where zero leaves the summand out, be it infinite
        summand, beta = None, 1.0
    if "float" not in dtype and not (alpha.is_integer() and beta.is_integer()):
        raise ModelError(
            f"{call.node.source} multiplies {dtype} by {alpha:g} and {beta:g}; cast its operands to float32"
        )
    if values.get("transA", 0):
        first = relax.op.permute_dims(first)
    if values.get("transB", 0):
        second = relax.op.permute_dims(second)
    product = call.builder.emit(relax.op.matmul(first, second))
    if alpha != 1:
        product = call.builder.emit(relax.op.multiply(product, call.constant(alpha, dtype)))
    if summand is None:
        return product
    if beta != 1:
        summand = call.builder.emit(relax.op.multiply(summand, call.constant(beta, dtype)))
    return relax.op.add(product, summand)


CONVERTERS: Mapping[str, Converter] = {"Gemm": _gemm}
