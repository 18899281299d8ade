"""Models that are programs: torch's run themselves, and Relax modules run on TVM's own virtual machine."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ModelError, last_line
from .evaluator import Evaluator


class TorchEvaluator(Evaluator):
    """A program of ``torch.export``, run by torch; its inner values are what modules of a single operator give."""

    def __init__(self, program: Any) -> None:
        # where it is not installed, type checkers do not find it
        torch: Any = importlib.import_module("torch")
        self._torch, self._module = torch, program.module()
        self.engine = f"torch {torch.__version__}"
        self.inputs = list(program.graph_signature.user_inputs)
        self.outputs = list(program.graph_signature.user_outputs)
        self._nodes = _modules_of_one_node(program)
        self.values = list(self._nodes)

    def run(self, arrays: Sequence[np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
        torch = self._torch
        names = {self._nodes[name]: name for name in wanted if name in self._nodes}
        seen: dict[str, np.ndarray] = {}
        interpreter = torch.fx.Interpreter(self._module)
        run_node = interpreter.run_node

        def watched(node: Any) -> Any:
            result = run_node(node)
            if node.name in names and isinstance(result, torch.Tensor):
                seen[names[node.name]] = result.detach().numpy().copy()
            return result

        interpreter.run_node = watched
        try:
            with torch.no_grad():
                results = interpreter.run(*map(torch.from_numpy, arrays))
        except Exception as error:  # torch raises whatever its operators stumble over
            raise ModelError(f"{self.engine} cannot run the program: {last_line(error)}") from None
        leaves, _ = torch.utils._pytree.tree_flatten(results)
        arrays_out = [leaf.detach().numpy() if isinstance(leaf, torch.Tensor) else np.asarray(leaf) for leaf in leaves]
        return seen | {name: array for name, array in zip(self.outputs, arrays_out, strict=True) if name in wanted}


def _modules_of_one_node(program: Any) -> dict[str, str]:
    """Paths of modules with the names of their nodes, where they have one each."""
    nodes: dict[str, list[str]] = {}
    for node in program.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if node.op == "call_function" and stack:
            nodes.setdefault(stack[-1][0], []).append(node.name)
    return {path: names[0] for path, names in nodes.items() if len(names) == 1}


class RelaxEvaluator(Evaluator):
    """A Relax module, compiled by TVM for the CPU without anything of this product; only its outputs are seen."""

    def __init__(self, module: Any) -> None:
        import tvm

        self.engine = f"TVM {tvm.__version__}'s Relax"
        # the class is made when TVM's runtime is loaded, where type checkers do not find it
        machine = importlib.import_module("tvm.relax").VirtualMachine
        try:
            self._main = machine(tvm.compile(module, target="llvm"), tvm.cpu())["main"]
        except Exception as error:  # TVM's passes raise whatever they stumble over
            raise ModelError(f"{self.engine} cannot compile the module: {last_line(error)}") from None
        result = module["main"].ret_ty
        self.inputs = [parameter.name for parameter in module["main"].params]
        fields = getattr(result, "fields", None)
        self.outputs = ["output"] if fields is None else [f"output {index}" for index in range(len(fields))]

    def run(self, arrays: Sequence[np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
        import tvm

        result = self._main(*map(tvm.runtime.tensor, arrays))
        results = [result] if len(self.outputs) == 1 and hasattr(result, "numpy") else list(result)
        named = {name: array.numpy() for name, array in zip(self.outputs, results, strict=True)}
        return {name: named[name] for name in wanted}
