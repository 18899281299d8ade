"""Nodes while they are being formed: they take in what follows them, until the graph is finished."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import takewhile

import numpy as np

from tvm_coexec.frontends.trace import Source, claim_name
from tvm_coexec.graph import Graph, Image, Node, Tensor
from tvm_coexec.graph.graph import AnyLayer
from tvm_coexec.layers import Attention, Concat, Conv2d, Linear, Opaque, step_operands

LARGEST = float(np.finfo(np.float32).max)
_LEAST = 2.0**-100
"""Where the largest factor is below it, float32 may lose digits of products, or make zero of them."""

_MOST_STEPS = 16
"""Steps after which another layer begins: kernels with hundreds of them take minutes to compile."""

_SMALL, _LARGE = 2.0**4, 2.0**10
"""How much larger than what it is added to a summand is that hardly rounds it, and one that may be there to round."""

_LEAST_PART = 2.0**-6
"""Summands whose sum is a smaller part of them cancel; channels with smaller factors are as good as dead."""


@dataclass(eq=False)
class DraftTensor:
    """A tensor of the coming graph; ``producer`` is None for the model's inputs.

    ``image`` is set as soon as a layer reads or writes the tensor as an image.
    """

    name: str
    shape: tuple[int, ...]
    channels: int
    producer: Draft | None = None
    image: Image | None = None
    channels_first: bool = False
    dtype: str = "float32"
    counted_by: DraftTensor | None = None

    @property
    def rows(self) -> int:
        return math.prod(self.shape) // self.channels

    def finish(self, seen_by_user: bool) -> Tensor:
        if self.channels_first:
            return Tensor(self.name, self.shape, 1, self.image, True, self.dtype)
        if self.image is not None and not seen_by_user:
            return Tensor(self.name, self.image, 1, self.image, dtype=self.dtype)
        axes = trailing_axes(self.shape, self.channels)
        if axes is None and not seen_by_user:
            # the model sees its channels elsewhere, which only its readers have to know
            return Tensor(self.name, (self.rows, self.channels), 1, dtype=self.dtype)
        if axes is None:
            raise ValueError(f"tensor {self.name!r} of shape {self.shape} cannot have {self.channels} channels")
        count = None if self.counted_by is None else self.counted_by.name
        return Tensor(self.name, self.shape, axes, self.image, dtype=self.dtype, counted_by=count)


@dataclass(frozen=True)
class Affine:
    """``value · scale + shift`` for each channel, in float64; ``source`` is the last operation that made it so."""

    scale: np.ndarray | None
    shift: np.ndarray | None
    source: Source

    def after(self, first: Affine | None) -> Affine | None:
        """``first``, then this one; None where one factor and one summand in float32 are not the same function."""
        if first is None:
            return self
        scale, shift = first.scale, first.shift
        if self.scale is not None:
            if not may_multiply(shift, first.scale):
                return None
            scale = self.scale if scale is None else scale * self.scale
            shift = None if shift is None else shift * self.scale
        if self.shift is not None:
            if not may_add(shift, self.shift, scale):
                return None
            shift = self.shift if shift is None else shift + self.shift
        is_held = _is_held(scale) and (shift is None or bool(np.abs(shift).max(initial=0.0) <= LARGEST))
        return replace(self, scale=scale, shift=shift) if is_held else None

    def fits_before(self, weights: np.ndarray) -> bool:
        """Whether weights can take in that their input is this function of what they read."""
        largest = np.abs(weights).max(initial=0.0)
        scales = self.scale is None or _is_held(largest * self.scale)
        held = self.shift is None or bool(largest * np.abs(self.shift).sum() <= LARGEST)
        return scales and held and may_multiply(self.shift, self.scale)


def _is_held(factors: np.ndarray | None) -> bool:
    """Whether float32 holds the factors: none overflows, of which infinity makes NaN, and not all are next to zero."""
    largest = 0.0 if factors is None else np.abs(factors).max(initial=0.0)
    return bool(largest == 0 or _LEAST <= largest <= LARGEST)


def _sizes(factors: np.ndarray | None) -> np.ndarray:
    """How large the products of the factors with ones are; of channels that are as good as dead a little more."""
    sizes = np.ones(1) if factors is None else np.abs(factors)
    return np.maximum(sizes, _LEAST_PART * sizes.max(initial=0.0))


def may_add(first: np.ndarray | None, second: np.ndarray, factors: np.ndarray | None = None) -> bool:
    """Whether one summand may stand for two, which are added to products with the factors one after the other.

    Large ones round what they are added to, as 1.5 · 2²³ leaves whole numbers: they stay alone. Smaller ones are
    joined where the first hardly rounds the products, or where they do not cancel.
    """
    if first is None:
        return True
    sizes, largest, total = _sizes(factors), np.maximum(np.abs(first), np.abs(second)), np.abs(first + second)
    is_rounded = (largest > _LARGE * sizes) | ((largest > _SMALL * sizes) & (total < _LEAST_PART * largest))
    return not np.any(is_rounded & (first != 0) & (second != 0)) and bool(total.max(initial=0.0) <= LARGEST)


def may_multiply(shift: np.ndarray | None, factors: np.ndarray | None = None) -> bool:
    """Whether a summand of products with the factors may be multiplied by what its sums are multiplied by.

    Sums of large products cancel, and have rounding errors that products of small sums do not have.
    """
    return shift is None or bool(np.all(np.abs(shift) <= _LARGE * _sizes(factors)))


@dataclass(eq=False)
class Draft:
    """A node that may still grow: ``layer`` is without its epilogue until the draft is finished."""

    name: str
    layer: AnyLayer
    input: DraftTensor
    output: DraftTensor
    params: dict[str, np.ndarray] = field(default_factory=dict)
    epilogue: list[str] = field(default_factory=list)
    residual: DraftTensor | None = None
    others: tuple[DraftTensor, ...] = ()

    def __post_init__(self) -> None:
        self.output.producer = self

    @property
    def takes_steps(self) -> bool:
        """Whether the layer can have a further step."""
        return not isinstance(self.layer, Concat | Attention | Opaque) and len(self.epilogue) < _MOST_STEPS

    def append(self, step: str) -> None:
        self.epilogue.append(step)

    def can_fold(self, affine: Affine) -> bool:
        """Whether an affine function of the result can be taken into the parameters, or into a first bias."""
        scale = np.ones(1) if affine.scale is None else affine.scale
        scales = affine.scale is None or self._factors(scale) is not None
        name = self._summand()
        shifts = affine.shift is None or (
            may_add(self.params[name] * scale, affine.shift, self._own_factors() * scale)
            if name
            else "bias" not in self.epilogue
        )
        return self.takes_steps and scales and shifts

    def absorb(self, affine: Affine) -> None:
        """Take an affine function of the result into the parameters, or into steps of its own."""
        if affine.scale is not None:
            self._scale(affine.scale)
        if affine.shift is not None:
            self._shift(affine.shift)

    def absorb_before(self, affine: Affine) -> None:
        """Let a fresh linear layer or convolution read a tensor of which its input is an affine function.

        A convolution that takes a shift must have no padding: what is beyond the edge is not shifted.
        """
        weights = self.params["weights"].astype(np.float64)
        groups = self.layer.groups if isinstance(self.layer, Conv2d) else 1
        # [groups, out / groups, in / groups, taps], whatever the layer
        taps = weights.T[..., None] if weights.ndim == 2 else weights.reshape(*weights.shape[:2], -1)
        taps = taps.reshape(groups, -1, *taps.shape[1:])
        if affine.shift is not None:
            self._shift(np.einsum("goit,gi->go", taps, affine.shift.reshape(groups, -1)).reshape(-1))
        if affine.scale is not None:
            taps = taps * affine.scale.reshape(groups, 1, -1, 1)
            scaled = taps.reshape(-1, *taps.shape[2:])
            self.params["weights"] = scaled[..., 0].T if weights.ndim == 2 else scaled.reshape(weights.shape)

    def _last_operands(self, steps: Collection[str]) -> list[str]:
        """The operands of the last steps, back to the first that is none of ``steps``."""
        pairs = zip(reversed(self.epilogue), reversed(step_operands(self.epilogue)), strict=True)
        return [operand or "" for _, operand in takewhile(lambda pair: pair[0] in steps, pairs)]

    def _factors(self, scale: np.ndarray) -> list[str] | None:
        """The parameters that a factor of the result multiplies: those of the last steps, or the layer's own too.

        None if there are none, or a large summand is among them, or if products would overflow, as those with
        infinity do: their sums are NaN.
        """
        affine = self._last_operands(("bias", "scale"))
        factor = next((index for index, name in enumerate(affine) if name.startswith("scale")), None)
        if factor is not None:
            names = affine[: factor + 1]
        elif len(affine) == len(self.epilogue) and self._has_factors:
            names = list(self.params)
        else:
            return None
        own, summands = self._own_factors(), [name for name in names if name.startswith(("beta", "bias"))]
        if not all(may_multiply(self.params[name], own) for name in summands):
            return None
        largest = max((np.abs(self.params[name]).max(initial=0.0) for name in names), default=0.0)
        return names if largest * np.abs(scale).max(initial=0.0) <= LARGEST else None

    def _scale(self, scale: np.ndarray) -> None:
        names = self._factors(scale)
        if names is None:
            self.append_constant("scale", scale)
        for name in names or ():
            axes = (-1, 1, 1, 1) if self.params[name].ndim == 4 else (-1,)
            self.params[name] = self.params[name] * scale.reshape(axes)

    @property
    def _has_factors(self) -> bool:
        """Whether the layer's own parameters multiply its result."""
        return isinstance(self.layer, Linear | Conv2d) or getattr(self.layer, "kind", None) == "layer_norm"

    def _own_factors(self) -> np.ndarray:
        """What stands for the factors of the last summands: of sums of products, the root of their squares' sum."""
        before = len(self.epilogue) - len(self._last_operands(("bias", "residual")))
        if before:
            operand = step_operands(self.epilogue)[before - 1]
            return self.params[operand] if operand and self.epilogue[before - 1] == "scale" else np.ones(1)
        if not self._has_factors:
            return np.ones(1)
        if "gamma" in self.params:
            return self.params["gamma"]
        weights = self.params["weights"].astype(np.float64)
        return np.sqrt(np.square(weights).sum(axis=(1, 2, 3) if weights.ndim == 4 else 0))

    def _summand(self) -> str:
        """The parameter that one of the last steps adds, or the layer itself; empty if there is none."""
        summands = [name for name in self._last_operands(("bias", "residual")) if name != "residual"]
        return (summands or ["beta" if "beta" in self.params and not self.epilogue else ""])[0]

    def _shift(self, shift: np.ndarray) -> None:
        name = self._summand()
        if name and may_add(self.params[name], shift, self._own_factors()):
            self.params[name] = self.params[name] + shift
        else:
            self.append_constant("bias", shift)

    def append_constant(self, step: str, values: np.ndarray) -> None:
        """Append a step with a constant for each channel."""
        self.append(step)
        self.params[step_operands(self.epilogue)[-1] or step] = values

    def finish(self, name: str) -> Node:
        layer = self.layer
        if not isinstance(layer, Concat | Attention | Opaque):
            layer = replace(layer, epilogue=tuple(self.epilogue))
        if isinstance(layer, Opaque):
            # later readers may have made images of tensors that were rows when the layer was formed
            sizes = [tensor.image or (tensor.rows, tensor.channels) for tensor in (self.input, *self.others)]
            layer = layer.lying_as(sizes, self.output.image or (self.output.rows, self.output.channels))
        params = {
            key: np.ascontiguousarray(array, layer.parameter_dtype(key)).reshape(array.shape)
            for key, array in self.params.items()
        }
        residual = None if self.residual is None else self.residual.name
        others = tuple(tensor.name for tensor in self.others)
        return Node(name, layer, self.input.name, residual, self.output.name, params, others)


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
    seen_by_user = {*inputs, *outputs}
    tensors = {tensor.name: tensor.finish(tensor in seen_by_user) for tensor in all_tensors}
    return Graph(tensors, [tensor.name for tensor in inputs], [tensor.name for tensor in outputs], nodes)
