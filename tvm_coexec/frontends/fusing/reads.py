"""How often each value is read, in whatever view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from tvm_coexec.frontends.trace import Operation, Trace

VIEWS = ("reshape", "transpose")
"""Operations that change only how a tensor is seen."""


class Reads:
    """Counts the operations and outputs that read a value or a view of it."""

    def __init__(self, trace: Trace) -> None:
        self._roots: dict[str, str] = {}
        self._add_views(trace.operations)
        self._counts = Counter(self._of(trace.operations))
        self._counts.update(self._roots.get(value, value) for _, value in trace.outputs)

    def replace(self, pattern: Operation, parts: Iterable[Operation]) -> None:
        """Count parts of a pattern in its place."""
        parts = list(parts)
        self._add_views(parts)
        self._counts.subtract(self._of([pattern]))
        self._counts.update(self._of(parts))

    def has_one(self, name: str) -> bool:
        """Whether a single operation or output reads a value, in whatever view."""
        return self._counts[self._roots.get(name, name)] == 1

    def _add_views(self, operations: Iterable[Operation]) -> None:
        for operation in operations:
            if operation.op in VIEWS:
                self._roots[operation.output] = self._roots.get(operation.inputs[0], operation.inputs[0])

    def _of(self, operations: Iterable[Operation]) -> Iterator[str]:
        for operation in operations:
            if operation.op not in VIEWS:
                yield from (self._roots.get(name, name) for name in operation.inputs)
