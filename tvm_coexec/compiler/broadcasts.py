"""Vectors of one number in OpenCL C: TVM writes the number as often as there are lanes, and what it stands in again."""

from __future__ import annotations

import re

_VECTOR = re.compile(r"\(\((?:float|half|double|char|short|int|long|uchar|ushort|uint|ulong)(2|3|4|8|16)\)\(")


def with_short_broadcasts(source: str) -> str:
    """Write every vector of equal numbers in a source by one of them, which means the same.

    A kernel that broadcasts long expressions may be a tenth as long then, and compiles so much faster.
    """
    parts: list[str] = []
    position = 0
    while found := _VECTOR.search(source, position):
        operands, end = _operands(source, found.end())
        parts.append(source[position : found.end()])
        is_one = len(operands) == int(found[1]) and len(set(operands)) == 1
        parts.append(", ".join(map(with_short_broadcasts, operands[:1] if is_one else operands)))
        position = end
    return "".join([*parts, source[position:]])


def _operands(source: str, start: int) -> tuple[list[str], int]:
    """What stands between commas from a bracket on, and where the bracket is closed."""
    depth, first, operands, index = 0, start, [], start
    while True:
        letter = source[index]
        if letter == "(":
            depth += 1
        elif letter == "," and not depth:
            operands.append(source[first:index].strip())
            first = index + 1
        elif letter == ")" and not depth:
            return [*operands, source[first:index].strip()], index
        elif letter == ")":
            depth -= 1
        index += 1
