"""Names in TVM's text, which is read as Python: never the user's, which may be ``lambda``, ``T`` or no words at all."""

from __future__ import annotations

import json

from tvm import ir, tirx

_NAMED = {"ir.Var": ("name", "v"), "s_tir.SBlock": ("name_hint", "block")}
"""What in loops has a name, the field that has it, and what ours begin with."""


def with_own_names(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Write the same loops with their variables and blocks counted through."""
    if function.attrs is not None and "global_symbol" in function.attrs:
        function = function.without_attr("global_symbol")
    tree = json.loads(ir.save_json(function))
    nodes = tree["nodes"]
    for number, node in enumerate([node for node in nodes if node["type"] in _NAMED]):
        field, prefix = _NAMED[node["type"]]
        node["data"][field] = len(nodes)
        nodes.append({"type": "ffi.String", "data": f"{prefix}{number}"})
    return ir.load_json(json.dumps(tree))
