"""Which activations share memory: slots, planned by liveness for the CPU's and the GPU's program together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from .layers import layer_from_json
from .runtime.manifest import StepSpec, TensorSpec, lifetimes


@dataclass
class _Slot:
    """A piece of memory, and the last step that needs what is in it."""

    number: int
    geometry: tuple[int, ...] | None
    words: int
    needed_until: int


def assign_slots(
    tensors: Sequence[TensorSpec], steps: Sequence[StepSpec], words: Mapping[str, int], kept: Collection[str]
) -> tuple[TensorSpec, ...]:
    """Give every tensor a slot that holds nothing else while the tensor is needed.

    The zeros of a halo have to stay, so tensors with one share memory only where their halos are in the same places.
    All parts of a whole have its slot, from when the first is written until none is needed any more.

    Parameters
    ----------
    words
        Of four bytes: how much memory each tensor needs.
    kept
        Tensors with a slot of their own: what the user writes and reads between runs.
    """
    lives = lifetimes(tensors, steps)
    needed = dict.fromkeys(lives, 0)
    for tensor in tensors:
        needed[tensor.outermost] = max(needed[tensor.outermost], words[tensor.name])
    slots: list[_Slot] = []
    numbers: dict[str, int] = {}
    wholes = [tensor for tensor in tensors if not tensor.wholes]
    for tensor in sorted(wholes, key=lambda tensor: lives[tensor.name][0]):
        name, (first, last) = tensor.name, lives[tensor.name]
        begin = 0 if name in kept else first - _grace(steps[first - 1])
        slot = _free_slot(slots, tensor.halo_geometry, needed[name], begin)
        slot.words = max(slot.words, needed[name])
        slot.needed_until = len(steps) + 1 if name in kept else last
        numbers[name] = slot.number
    return tuple(replace(tensor, slot=numbers[tensor.outermost]) for tensor in tensors)


def _grace(step: StepSpec) -> int:
    """Steps for which a slot must have been free.

    A step that reads all channels has waited for everything before what it reads; one that stays on its side's own
    channels has waited for nobody, and should not have to for the sake of memory.
    """
    return 1 if layer_from_json(step.layer).channel_local else 0


def _free_slot(slots: list[_Slot], geometry: tuple[int, ...] | None, words: int, begin: int) -> _Slot:
    """The free slot that has to grow least, then the smallest; a new one if none is free."""
    free = [slot for slot in slots if slot.geometry == geometry and slot.needed_until < begin]
    if free:
        return min(free, key=lambda slot: (max(words - slot.words, 0), slot.words))
    slots.append(_Slot(len(slots), geometry, 0, 0))
    return slots[-1]
