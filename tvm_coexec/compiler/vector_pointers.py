"""Whole vectors through aligned pointers: TVM writes ``vload4``, which promises no alignment.

Compilers for phones' GPUs take such an access apart into one for each lane: a pointer to vectors makes it a single one.
"""

from __future__ import annotations

import ast
import math
import re

_PARAMETER = re.compile(r"__global (?:const )?(\w+?)\*(?: restrict)? (p\d+_\w+)")
_LOAD = re.compile(r"\bvload4\(0, (p\d+_\w+) \+ ")
_STORE = re.compile(r"\bvstore4\(")
_LANES = 4
"""Floats of a ``float4``, the width of ``vload4`` and ``vstore4``."""


def with_vector_pointers(source: str) -> str:
    """The source with every access of four lanes to a parameter whose offset is a multiple of four through a pointer.

    The memory of parameters itself is aligned to more than that.
    """
    types = {name: kind for kind, name in _PARAMETER.findall(source)}
    return _with_stores(_with_loads(source, types), types)


def _with_loads(source: str, types: dict[str, str]) -> str:
    parts, position = [], 0
    while found := _LOAD.search(source, position):
        end = _closing(source, found.end())
        offset = source[found.end() : end]
        parts.append(source[position : found.start()])
        if found[1] in types and _is_multiple(offset):
            parts.append(f"(*(__global {types[found[1]]}4*)({found[1]} + {offset}))")
        else:
            parts.append(source[found.start() : end + 1])
        position = end + 1
    return "".join([*parts, source[position:]])


def _with_stores(source: str, types: dict[str, str]) -> str:
    parts, position = [], 0
    while found := _STORE.search(source, position):
        end = _closing(source, found.end())
        stored = re.fullmatch(r"(.*), 0, (p\d+_\w+) \+ (.*)", source[found.end() : end], re.DOTALL)
        parts.append(source[position : found.start()])
        if stored and stored[2] in types and _is_multiple(stored[3]):
            parts.append(f"(*(__global {types[stored[2]]}4*)({stored[2]} + {stored[3]})) = {stored[1]}")
        else:
            parts.append(source[found.start() : end + 1])
        position = end + 1
    return "".join([*parts, source[position:]])


def _closing(source: str, start: int) -> int:
    """Where the bracket is closed that was opened before an index."""
    depth, index = 1, start
    while depth:
        depth += {"(": 1, ")": -1}.get(source[index], 0)
        index += 1
    return index - 1


def _is_multiple(offset: str) -> bool:
    """Whether an index is a multiple of the lanes, whatever its variables are; no where that cannot be read."""
    try:
        return _divisor(ast.parse(offset.strip(), mode="eval").body) % _LANES == 0
    except (SyntaxError, RecursionError):
        return False


def _divisor(node: ast.expr) -> int:
    """A number that divides the value of an expression, 0 where that is 0."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return abs(node.value)
    if isinstance(node, ast.BinOp):
        left, right = node.left, node.right
        if isinstance(node.op, ast.Add | ast.Sub):
            return math.gcd(_divisor(left), _divisor(right))
        if isinstance(node.op, ast.Mult):
            return _divisor(left) * _divisor(right)
        if isinstance(node.op, ast.LShift) and isinstance(right, ast.Constant) and isinstance(right.value, int):
            return _divisor(left) << right.value
    return 1
