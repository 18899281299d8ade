"""Nodes while they are being formed: they take in what follows them, until the graph is finished."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from ..graph import Graph, Node, Tensor
from ..layers import Linear, RowWise
from .trace import Source, claim_name


@dataclass(eq=False)
class DraftTensor:
    """A tensor of the coming graph; ``producer`` is None for the model's inputs."""

    name: str
    shape: tuple[int, ...]
    channels: int
    producer: Draft | None = None

    @property
    def rows(self) -> int:
        return math.prod(self.shape) // self.channels


@dataclass(frozen=True)
class Affine:
    """``value · scale + shift`` for each channel, in float64; ``source`` is the last operation that made it so."""

    scale: np.ndarray | None
    shift: np.ndarray | None
    source: Source

    def after(self, first: Affine | None) -> Affine:
        """``first``, then this one."""
        if first is None:
            return self
        scale, shift = first.scale, first.shift
        if self.scale is not None:
            scale = self.scale if scale is None else scale * self.scale
            shift = None if shift is None else shift * self.scale
        if self.shift is not None:
            shift = self.shift if shift is None else shift + self.shift
        return replace(self, scale=scale, shift=shift)


@dataclass(eq=False)
class Draft:
    """A node that may still grow; ``kind`` is ``linear`` or a kind of :class:`RowWise`."""

    name: str
    kind: str
    input: DraftTensor
    output: DraftTensor
    params: dict[str, np.ndarray] = field(default_factory=dict)
    epilogue: list[str] = field(default_factory=list)
    residual: DraftTensor | None = None
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        self.output.producer = self

    def append(self, step: str) -> None:
        self.epilogue.append(step)

    def absorb(self, affine: Affine) -> bool:
        """Take an affine function of the result into the parameters; False if they cannot express it."""
        if affine.scale is not None and (self.kind not in ("linear", "layer_norm") or set(self.epilogue) - {"bias"}):
            return False
        if affine.shift is not None and not self._takes_shift():
            return False
        if affine.scale is not None:
            for name, array in self.params.items():
                self.params[name] = array * affine.scale
        if affine.shift is not None:
            self._shift(affine.shift)
        return True

    def absorb_before(self, affine: Affine) -> None:
        """Let a fresh linear draft read a tensor of which its input is an affine function."""
        weights = self.params["weights"]
        if affine.shift is not None:
            self._shift(affine.shift @ weights.astype(np.float64))
        if affine.scale is not None:
            self.params["weights"] = weights * affine.scale[:, None]

    def _takes_shift(self) -> bool:
        """Whether the epilogue has no bias yet, or only additions after the bias."""
        if "bias" not in self.epilogue:
            return True
        return set(self.epilogue[self.epilogue.index("bias") :]) <= {"bias", "residual"}

    def _shift(self, shift: np.ndarray) -> None:
        if "bias" in self.epilogue:
            self.params["bias"] = self.params["bias"] + shift
        elif self.kind == "layer_norm" and not self.epilogue:
            self.params["beta"] = self.params["beta"] + shift
        else:
            self.append("bias")
            self.params["bias"] = shift

    def finish(self, name: str) -> Node:
        rows, channels, epilogue = self.output.rows, self.output.channels, tuple(self.epilogue)
        layer: Linear | RowWise
        if self.kind == "linear":
            layer = Linear(rows, self.input.channels, channels, epilogue)
        else:
            layer = RowWise(self.kind, rows, channels, epilogue, self.epsilon)
        params = {key: np.ascontiguousarray(array, dtype=np.float32) for key, array in self.params.items()}
        residual = None if self.residual is None else self.residual.name
        return Node(name, layer, self.input.name, residual, self.output.name, params)


def trailing_axes(shape: tuple[int, ...], channels: int) -> int | None:
    """How many of the last axes of ``shape`` together have ``channels`` elements; None if no number does."""
    for axes in (*range(1, len(shape) + 1), 0):
        if math.prod(shape[len(shape) - axes :]) == channels:
            return axes
    return None


def finish_graph(inputs: list[DraftTensor], outputs: list[DraftTensor], drafts: list[Draft]) -> Graph:
    """The graph that the drafts have become; names are made unique, outputs before intermediate tensors."""
    all_tensors = dict.fromkeys([*inputs, *outputs, *(draft.output for draft in drafts)])
    taken: set[str] = set()
    for tensor in all_tensors:
        tensor.name = claim_name(tensor.name, taken)
    taken = set()
    nodes = [draft.finish(claim_name(draft.name, taken)) for draft in drafts]
    tensors = {}
    for tensor in all_tensors:
        axes = trailing_axes(tensor.shape, tensor.channels)
        if axes is None:
            raise ValueError(f"tensor {tensor.name!r} of shape {tensor.shape} cannot have {tensor.channels} channels")
        tensors[tensor.name] = Tensor(tensor.name, tensor.shape, axes)
    graph = Graph(tensors, [tensor.name for tensor in inputs], [tensor.name for tensor in outputs], nodes)
    graph.validate()
    return graph
