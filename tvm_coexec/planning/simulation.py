"""The two programs of a network as clocks: how long a choice of splits takes, and the search for the best choice.

Each side computes its halves in order. Where the runtime would make it wait for the other side, it goes on a
synchronisation's time after both its own last half and the one that it waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tvm_coexec.graph.dependencies import Read, needs_other

BEAM_WIDTH = 48
"""Partial plans that the search carries from one step to the next."""

_TRADES = 8
"""Partial plans kept of those that leave the same tensors divided in the same way."""


@dataclass(frozen=True)
class Option:
    """One way to divide a step, with the times of its halves.

    Parameters
    ----------
    uncertainty_factor
        By which the halves of a split count as longer, since the later one decides and either may be late.
    """

    cpu_units: int
    gpu_units: int
    cpu_us: float
    gpu_us: float
    axis: str = "channels"
    uncertainty_factor: float = 1.0


@dataclass(frozen=True)
class Costs:
    """What is added to the halves' own times.

    Parameters
    ----------
    wait_us
        From the end of what a side waits for to the start of its next half.
    launch_us
        What a GPU half that does not wait takes beyond its kernel by itself; negative where kernels overlap.
    interval_us
        The least time from the launch of such a half to the next one.
    margin_us
        What the halves of a split step count as longer where the split takes a synchronisation, so that a gain within
        the margin of error is not taken.
    """

    wait_us: float
    launch_us: float = 0.0
    interval_us: float = 0.0
    margin_us: float = 0.0

    def launched_us(self, gpu_us: float) -> float:
        """What a GPU half that does not wait adds to the GPU's time."""
        return max(gpu_us + self.launch_us, self.interval_us)


@dataclass(frozen=True)
class Written:
    """A step that later ones read: how it is divided, and when either side has done its half."""

    option: Option
    cpu_us: float
    gpu_us: float


@dataclass(frozen=True)
class State:
    """The clocks of both sides after some steps, and what the next steps need of the past.

    ``cpu_known`` is the last step of which the CPU knows that the GPU has done its half, ``gpu_known`` likewise.
    """

    cpu_us: float = 0.0
    gpu_us: float = 0.0
    cpu_known: int = 0
    gpu_known: int = 0
    last_gpu: int = 0
    live: Mapping[int, Written] = field(default_factory=dict)
    options: tuple[Option, ...] = ()

    def total_us(self, costs: Costs) -> float:
        """The time of a network that ends here: the CPU waits for the GPU's last half."""
        if self.cpu_known >= self.last_gpu:
            return self.cpu_us
        return max(self.cpu_us, self.gpu_us) + (costs.wait_us if self.cpu_us else 0.0)

    @property
    def division(self) -> tuple[object, ...]:
        """How the tensors are divided that are still to be read, and who knows of them."""
        return (
            self.cpu_known >= self.last_gpu,
            *(
                (written.option.axis, written.option.gpu_units, self.cpu_known >= step, self.gpu_known >= step)
                for step, written in self.live.items()
            ),
        )

    @property
    def times_us(self) -> tuple[float, ...]:
        """All that must be no later for a state to be no worse than another of the same division."""
        ends = (end for written in self.live.values() for end in (written.cpu_us, written.gpu_us))
        return (self.cpu_us, self.gpu_us, *ends)


def advance(state: State, reads: Sequence[Read], option: Option, costs: Costs, kept: Iterable[int] = ()) -> State:
    """Add a step; ``kept`` are the steps that later ones read, among them perhaps this one."""
    number, live = len(state.options) + 1, state.live
    awaited = {
        side: max(
            (read.step for read in reads if needs_other(side, option, live[read.step].option, read)),
            default=0,
        )
        for side in ("cpu", "gpu")
    }
    cpu_us, gpu_us = state.cpu_us, state.gpu_us
    cpu_known, gpu_known = max(state.cpu_known, awaited["cpu"]), max(state.gpu_known, awaited["gpu"])
    # Both programs are in order: a side that has waited for a step knows that those before it are done.
    if cpu_known > state.cpu_known:
        cpu_us = max(cpu_us, live[cpu_known].gpu_us) + costs.wait_us
    if gpu_known > state.gpu_known:
        gpu_us = max(gpu_us, live[gpu_known].cpu_us) + costs.wait_us
    is_split = option.cpu_units > 0 and option.gpu_units > 0
    factor = option.uncertainty_factor if is_split else 1.0
    half_us = factor * option.gpu_us
    if gpu_known == state.gpu_known and option.gpu_units and (reads or not option.cpu_units):
        half_us = costs.launched_us(half_us)
    margin_us = costs.margin_us if is_split and (any(awaited.values()) or not reads) else 0.0
    cpu_us += factor * option.cpu_us + margin_us
    gpu_us += half_us + margin_us
    written = {step: live[step] if step < number else Written(option, cpu_us, gpu_us) for step in kept}
    last_gpu = number if option.gpu_units else state.last_gpu
    return State(cpu_us, gpu_us, cpu_known, gpu_known, last_gpu, written, (*state.options, option))


def simulate(reads: Sequence[Sequence[Read]], options: Sequence[Option], costs: Costs) -> float:
    """The time of a network of which every step is divided."""
    state = State()
    for read, option, kept in zip(reads, options, _kept(reads), strict=True):
        state = advance(state, read, option, costs, kept)
    return state.total_us(costs)


def search(
    reads: Sequence[Sequence[Read]],
    options: Callable[[int, Mapping[int, Written]], Iterable[Option]],
    costs: Costs,
    width: int = BEAM_WIDTH,
) -> tuple[Option, ...]:
    """Search the division of every step with about the least time for the whole network.

    Parameters
    ----------
    options
        The ways to divide a step, of its number, where the tensors that it reads are divided as given.
    """
    states = [State()]
    for number, (read, kept) in enumerate(zip(reads, _kept(reads), strict=True), 1):
        states = _best(
            [advance(state, read, option, costs, kept) for state in states for option in options(number, state.live)],
            width,
        )
    return min(states, key=lambda state: state.total_us(costs)).options


def _kept(reads: Sequence[Sequence[Read]]) -> Iterator[list[int]]:
    """List after each step the steps so far that a later one reads."""
    last_reader = {read.step: number for number, step in enumerate(reads, 1) for read in step}
    live: dict[int, None] = {}
    for number, step in enumerate(reads, 1):
        if last_reader.get(number, 0) > number:
            live[number] = None
        for read in step:
            if last_reader[read.step] == number:
                live.pop(read.step, None)
        yield list(live)


def _best(states: list[State], width: int) -> list[State]:
    """Keep the most promising states, half of them by the later clock, half by the sum of both.

    Where branches run side by side a good plan may look unbalanced for a while: the sum is what it will come to.
    """
    distinct: dict[tuple[object, ...], list[State]] = {}
    for state in sorted(states, key=lambda state: (max(state.cpu_us, state.gpu_us), state.cpu_us + state.gpu_us)):
        alike = distinct.setdefault(state.division, [])
        if len(alike) < _TRADES and not any(_is_no_later(one, state) for one in alike):
            alike.append(state)
    found = [state for alike in distinct.values() for state in alike]
    found.sort(key=lambda state: max(state.cpu_us, state.gpu_us))
    chosen, rest = found[: width // 2], found[width // 2 :]
    rest.sort(key=lambda state: state.cpu_us + state.gpu_us)
    return chosen + rest[: width - len(chosen)]


def _is_no_later(state: State, than: State) -> bool:
    return all(own <= other for own, other in zip(state.times_us, than.times_us, strict=True))
