"""Which activations share memory: storage buffers, planned by liveness for the CPU's and the GPU's program together.

The halo of an image has to be zero. Where only tensors with halos in the same places share a buffer, no kernel ever
writes there; of the others, each is cleared again whenever it is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tvm_coexec.module.manifest import StepSpec, lifetimes
from tvm_coexec.module.tensors import TensorSpec

_CLEARING_WORDS = 8192
"""A storage buffer may grow by so many words, 32 KiB, to spare the clearing of a halo: one kernel more in every run."""

_WAITING_WORDS = 131072
"""A buffer may grow by so many words, 512 KiB, to spare a wait for the other side, which seldom is that far behind:
memory that no cache holds any more takes longer."""

Geometry = tuple[int, ...] | None


@dataclass
class _Buffer:
    """A piece of memory, and what matters of the tensors in it."""

    number: int
    words: int = 0
    needed_until: int = -1
    geometries: Counter[Geometry] = field(default_factory=Counter)
    last_uses: dict[int, int] = field(default_factory=dict)

    def add(self, words: int, last: int, geometry: Geometry) -> None:
        """Put a tensor here, after those that are."""
        self.words, self.needed_until = max(self.words, words), last
        self.geometries[geometry] += 1
        self.last_uses[words] = max(last, self.last_uses.get(words, -1))

    def last_use(self, words: int) -> int:
        """The last step that used so many words: the later it was, the more of them a cache still holds."""
        return max((last for used, last in self.last_uses.items() if used >= words), default=-1)

    def cost_words(self, words: int, geometry: Geometry, *, waits: bool) -> int:
        """How much the buffer grows for one tensor more, with what the halos to clear and a wait count."""
        more = _to_clear(self.geometries + Counter([geometry])) - _to_clear(self.geometries)
        return max(words - self.words, 0) + _CLEARING_WORDS * more + _WAITING_WORDS * waits


def _to_clear(geometries: Counter[Geometry]) -> int:
    """How many of the tensors that share a storage buffer have a halo that does not stay zero."""
    return geometries.total() - geometries[None] if len(geometries) > 1 else 0


def assign_buffers(
    tensors: Sequence[TensorSpec],
    steps: Sequence[StepSpec],
    words: Mapping[str, int],
    kept: Collection[str],
    *,
    may_wait: bool,
) -> tuple[TensorSpec, ...]:
    """Give every tensor a storage buffer that holds nothing else while the tensor is needed.

    Where waits are cheap, a side may have to wait until the other needs a buffer no more: not for the step just before.

    All slices of a parent have its buffer, from when the first is written until none is needed any more.

    Parameters
    ----------
    words
        The memory that each tensor needs, in words of four bytes.
    kept
        Tensors with a storage buffer of their own: what the user writes and reads between runs.
    may_wait
        Whether a wait is worth the memory that it saves.
    """
    lives, free_since = lifetimes(tensors, steps), _free_since(tensors, steps)
    needed = dict.fromkeys(lives, 0)
    for tensor in tensors:
        needed[tensor.outermost] = max(needed[tensor.outermost], words[tensor.name])
    buffers: list[_Buffer] = []
    numbers: dict[str, int] = {}
    parents = [tensor for tensor in tensors if not tensor.parents]
    for tensor in sorted(parents, key=lambda tensor: lives[tensor.name][0]):
        name, (first, last) = tensor.name, lives[tensor.name]
        since = -1 if name in kept else free_since[name]
        # The other side is seldom two steps behind: to wait for what it did before the last step costs little.
        after_wait = max(since, first - 2) if may_wait and name not in kept else since
        buffer = _free_buffer(buffers, tensor.halo_geometry, needed[name], (since, after_wait))
        buffer.add(needed[name], len(steps) + 1 if name in kept else last, tensor.halo_geometry)
        numbers[name] = buffer.number
    return tuple(replace(tensor, buffer=numbers[tensor.outermost]) for tensor in tensors)


def _free_since(tensors: Sequence[TensorSpec], steps: Sequence[StepSpec]) -> dict[str, int]:
    """Give for each tensor that is no slice the step after which its memory must not have been needed.

    Otherwise a side may have to wait.

    It is the last one that both sides have done whenever a step writes into the tensor, if all steps are divided,
    so that none has to wait for the sake of memory. Where a step reads all channels, it has waited for whatever
    wrote them; where it stays on its side's own channels or lines, for no more than their writer had.
    """
    named = {tensor.name: tensor for tensor in tensors}
    written: dict[str, int] = {}
    awaited: list[int] = []
    since: dict[str, int] = {}
    for number, step in enumerate(steps, 1):
        read = {name: written[name] for name in step.inputs if name in written}
        followed = {name for name in step.local_inputs if name in read and steps[read[name] - 1].axis == step.axis}
        known = (awaited[writer - 1] if name in followed else writer for name, writer in read.items())
        awaited.append(max(known, default=0))
        output = named[step.output]
        written |= dict.fromkeys((output.name, *output.parents), number)
        since[output.outermost] = min(since.get(output.outermost, number), awaited[-1])
    return since


def _free_buffer(buffers: list[_Buffer], geometry: Geometry, words: int, free: tuple[int, int]) -> _Buffer:
    """The cheapest of a new buffer and of those that are free since a step, or since another for a side that waits.

    Among equals, the last used one is taken.
    """
    new, (since, after_wait) = _Buffer(len(buffers)), free

    def order(buffer: _Buffer) -> tuple[int, int, int]:
        waits = buffer is not new and buffer.needed_until > since
        return (buffer.cost_words(words, geometry, waits=waits), -buffer.last_use(words), buffer.words)

    found = min([*(buffer for buffer in buffers if buffer.needed_until <= after_wait), new], key=order)
    if found is new:
        buffers.append(new)
    return found


def halos_to_clear(tensors: Sequence[TensorSpec]) -> set[str]:
    """The names of tensors, slices of others included, whose halo must be cleared whenever they are written."""
    geometries: dict[int | None, Counter[Geometry]] = {}
    for tensor in tensors:
        if not tensor.parents:
            geometries.setdefault(tensor.buffer, Counter())[tensor.halo_geometry] += 1
    return {tensor.name for tensor in tensors if tensor.halo_geometry and _to_clear(geometries[tensor.buffer])}
