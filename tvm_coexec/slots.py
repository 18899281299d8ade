"""Which activations share memory: slots, planned by liveness for the CPU's and the GPU's program together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from .layers import layer_from_json
from .runtime.manifest import StepSpec, TensorSpec


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

    Parameters
    ----------
    words
        Of four bytes: how much memory each tensor needs.
    kept
        Tensors with a slot of their own: what the user writes and reads between runs.
    """
    written = {step.output: number for number, step in enumerate(steps, 1)}
    last_use = {**written, **{name: number for number, step in enumerate(steps, 1) for name in step.inputs}}
    slots: list[_Slot] = []
    numbers: dict[str, int] = {}
    for tensor in sorted(tensors, key=lambda tensor: written.get(tensor.name, 0)):
        name = tensor.name
        begin = 0 if name in kept else written[name] - _grace(steps[written[name] - 1])
        slot = _free_slot(slots, tensor.halo_geometry, words[name], begin)
        slot.words = max(slot.words, words[name])
        slot.needed_until = len(steps) + 1 if name in kept else last_use[name]
        numbers[name] = slot.number
    return tuple(replace(tensor, slot=numbers[tensor.name]) for tensor in tensors)


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
