"""Recognise products of two activations, their operands views of rows or of images."""

from __future__ import annotations

from tvm_coexec.frontends.trace import Operation, Trace

from .heads import HeadFinder, for_heads


def collapse_products(trace: Trace) -> Trace:
    """Replace every product of two activations by one operation ``matrix_product`` on what its operands show."""
    finder = _Finder(trace)
    return finder.collapsed("matmul", finder.product)


class _Finder(HeadFinder):
    def product(self, product: Operation) -> Operation | None:
        """The product with its operands as views; None if it is one with constants, or of too many axes."""
        left, right = (self.heads(name) for name in product.inputs)
        if left is None or right is None or {left.root, right.root} & self.trace.constants.keys():
            return None
        batch, heads = (max(sizes) for sizes in zip(left.shape[:2], right.shape[:2], strict=True))
        left, right = (for_heads(view, batch, heads) for view in (left, right))
        m, k, n = *left.shape[2:], right.shape[3]
        shape = self.trace.shapes[product.output]
        if (left.shape[:2], right.shape[:3]) != ((batch, heads), (batch, heads, k)) or shape[-2:] != (m, n):
            return None
        in_rows = self._merged(product, (batch, heads, m, n))
        turned = None if in_rows else self._merged(product, (batch, heads, n, m), is_turned=True)
        if turned is not None:
            # the columns of the result are its rows, as those of the factors are
            left, right, m, n = right.transposed((0, 1, 3, 2)), left.transposed((0, 1, 3, 2)), n, m
        operation, channels_first = in_rows or turned or (product, False)
        attributes = {
            "batch": batch,
            "heads": heads,
            "m": m,
            "k": k,
            "n": n,
            "scale": left.factor * right.factor,
            "heads_in_rows": operation is product,
            "views": (left, right),
            "channels_first": channels_first,
        }
        return Operation("matrix_product", (left.root, right.root), operation.output, product.source, attributes)

    def _merged(
        self, product: Operation, shape: tuple[int, ...], is_turned: bool = False
    ) -> tuple[Operation, bool] | None:
        """The operation that puts the results of several heads side by side, and whether as channels of images."""
        found = self.rows(product, shape, is_turned) if shape[1] > 1 else None
        return None if found is None or found[0] is product else found
