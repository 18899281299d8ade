"""Tensors of as many rows as the model computes: held with room for the most that there can be, and counted.

Such a tensor may be read by what works on each row by itself; the module gives its user the rows that count.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Source, claim_name

from .simplifier import Handler, SimpleNode, Simplifier
from .values import Scope, ValueType


def _suppress(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    renamed = simplifier.renamed(node, scope, source)
    if simplifier.is_constant(renamed):
        return False
    most = simplifier.constant(renamed.input[2]) if len(renamed.input) > 2 and renamed.input[2] else None
    if len(renamed.input) > 2 and renamed.input[2] and most is None:
        raise ModelError(f"{source} has a number of boxes that the model computes; make it a constant")
    simplifier.check_operands(renamed, source)
    model = simplifier.model
    batch, classes, boxes = model.types[renamed.input[1]].shape
    rows = batch * classes * min(boxes, 0 if most is None else max(int(most.reshape(-1)[0]), 0))
    if not rows:
        raise ModelError(f"{source} selects no boxes at all; give it a max_output_boxes_per_class above 0")
    name, count = (claim_name(each, simplifier.taken) for each in (node.output[0], f"{node.output[0]}/count"))
    renamed.output[:] = [name, count]
    model.types |= {name: ValueType("int64", (rows, 3)), count: ValueType("int64", (1,))}
    model.counts[name] = count
    model.nodes.append(SimpleNode(renamed, source, scope.opset))
    scope.meanings[node.output[0]] = name
    return True


HANDLERS: Mapping[str, Handler] = {"NonMaxSuppression": _suppress}
