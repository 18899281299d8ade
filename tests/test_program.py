"""The lowering of steps to two programs: however the sides advance, data is there when it is read."""

import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lowering import AHEAD, CHAINED, LOOKAHEAD, READY, TO_CPU, TO_GPU, Lowered, lower

from tvm_coexec.graph.dependencies import Read, Work, network_reads


@st.composite
def networks(draw: st.DrawFn) -> list[Work]:
    """Steps that read any others, each unit of a step either the same unit or all; steps of equal units are common.

    Along one axis a step may read the same unit alone, and all of a step that is divided along the other.
    """
    works: list[Work] = []
    for number in range(draw(st.integers(1, 8))):
        units = draw(st.sampled_from([1, 4, 4, 4]))
        cpu_units = draw(st.integers(0, units))
        reads = draw(st.sets(st.integers(1, number), max_size=2)) if number else set()
        alike = {read: works[read - 1].cpu_units + works[read - 1].gpu_units == units for read in sorted(reads)}
        axes = st.sampled_from([(), ("channels",), ("lines",), ("channels", "lines")])
        reads_of_step = tuple(Read(read, draw(axes) if alike[read] else ()) for read in alike)
        axis = draw(st.sampled_from(["channels", "channels", "lines"]))
        launches, steps, is_output = draw(st.integers(1, 3)), draw(st.booleans()), draw(st.booleans())
        works.append(Work(cpu_units, units - cpu_units, reads_of_step, is_output, 1, launches, steps, axis))
    return [*works[:-1], replace(works[-1], is_output=True)]


def is_local(reader: Work, writer: Work, read: Read) -> bool:
    return reader.axis == writer.axis and writer.axis in read.local


def units_of(work: Work, side: str) -> set[int]:
    return set(range(work.gpu_units)) if side == "gpu" else set(range(work.gpu_units, work.gpu_units + work.cpu_units))


class Flags:
    """Runs both programs on a model of the flags, the sides taking turns at random."""

    def __init__(self, works: list[Work], lowered: Lowered, seed: int) -> None:
        self.works, self.lowered, self.random = works, lowered, random.Random(seed)
        self.done: dict[str, set[int]] = {"cpu": set(), "gpu": set()}
        self.flag = {"cpu": 0, "gpu": 0}
        self.enqueued = 0
        self.launched: list[tuple[int, int]] = []

    def check_reads(self, side: str, step: int) -> None:
        for read in self.works[step - 1].reads:
            work = self.works[read.step - 1]
            for writer in ("cpu", "gpu"):
                read_units = units_of(work, writer)
                if is_local(self.works[step - 1], work, read):
                    read_units &= units_of(self.works[step - 1], side)
                assert not read_units or read.step in self.done[writer], f"{side} reads {read} before {writer} wrote it"

    def compute(self, side: str, step: int) -> None:
        self.check_reads(side, step)
        self.done[side].add(step)

    def cpu(self, index: int) -> bool:
        operation = self.lowered.operations[index]
        if operation.kind == "wait":
            return self.flag["gpu"] >= operation.step
        if operation.kind == "enqueue":
            assert operation.first == self.enqueued
            self.enqueued = operation.last
        elif operation.kind == "call":
            self.compute("cpu", operation.step)
        else:
            assert operation.kind == "signal" and operation.step > self.flag["cpu"]
            self.flag["cpu"] = operation.step
        return True

    def gpu(self, index: int) -> bool:
        if index >= self.enqueued:
            return False
        command = self.lowered.commands[index]
        if command.awaited > self.flag["cpu"]:
            return False
        if command.kind == "kernel":
            self.launched.append((command.step, command.launch))
            self.check_reads("gpu", command.step)
            if command.launch == self.works[command.step - 1].gpu_launches - 1:
                self.compute("gpu", command.step)
        if command.done:
            assert command.done >= self.flag["gpu"]
            assert command.done in self.done["gpu"], "a step is reported before its last kernel has ended"
            self.flag["gpu"] = command.done
        return not command.kind.endswith("wait") or self.flag["cpu"] >= command.step

    def run(self) -> None:
        at = {"cpu": 0, "gpu": 0}
        ends = {"cpu": len(self.lowered.operations), "gpu": len(self.lowered.commands)}
        while at != ends:
            before = dict(at), dict(self.flag)  # a command that signals and waits moves a flag before it moves on
            for side in self.random.sample(["cpu", "gpu"], 2):
                at[side] += at[side] < ends[side] and getattr(self, side)(at[side])
            assert (at, self.flag) != before, "both sides wait for each other"


@given(networks(), st.integers(0, 1000), st.sampled_from([READY, AHEAD, CHAINED]))
def test_flags_never_deadlock_and_never_read_early(works: list[Work], seed: int, when: int) -> None:
    run = Flags(works, lower(works, "svm", when=when), seed)
    run.run()
    assert run.done["cpu"] == {number for number, work in enumerate(works, 1) if work.cpu_units}
    assert run.done["gpu"] == {number for number, work in enumerate(works, 1) if work.gpu_units}
    assert run.launched == [
        (number, launch)
        for number, work in enumerate(works, 1)
        if work.gpu_units
        for launch in range(work.gpu_launches)
    ]


@given(networks())
def test_cpu_ends_after_the_last_gpu_step(works: list[Work]) -> None:
    last = max((number for number, work in enumerate(works, 1) if work.gpu_units), default=0)
    waits = [operation.step for operation in lower(works, "svm").operations if operation.kind == "wait"]
    assert max(waits, default=0) == last


@given(networks())
def test_what_is_enqueued_when_it_is_ready_never_waits(works: list[Work]) -> None:
    lowered = lower(works, "svm", when=READY)
    signalled = 0
    for operation in lowered.operations:
        if operation.kind == "signal":
            signalled = operation.step
        for command in lowered.commands[operation.first : operation.last] if operation.kind == "enqueue" else ():
            assert command.kind != "signal_wait"
            assert (command.step if command.kind == "wait" else command.awaited) <= signalled


def enqueues(works: list[Work], when: int) -> list[tuple[int, int]]:
    """The steps before which commands are enqueued, and up to which command."""
    operations = lower(works, "svm", when=when).operations
    return [(one.step, one.last) for one in operations if one.kind == "enqueue"]


def test_commands_of_a_chain_are_enqueued_at_once() -> None:
    half = Work(1, 1, gpu_steps=True)
    works = [half] * 3 + [Work(1, 0)] * LOOKAHEAD + [half] * 3
    assert enqueues(works, CHAINED) == [(1, 6)]
    assert enqueues(works, AHEAD) == [(1, 3), (4, 4), (5, 5), (6, 6)]


def test_a_chain_does_not_wait_for_many_steps_of_the_cpu() -> None:
    half = Work(1, 1, gpu_steps=True)
    works = [half] * 3 + [Work(1, 0)] * (LOOKAHEAD + 1) + [half] * 3
    assert enqueues(works, CHAINED) == [(1, 3), (7 - LOOKAHEAD, 6)]
    assert enqueues([Work(1, 0)] * 5, CHAINED) == []


@given(networks())
def test_events_transfer_every_tensor_that_crosses(works: list[Work]) -> None:
    operations = lower(works, "event", inputs=1).operations
    for step, work in enumerate(works, 1):
        for read in work.reads:
            written = works[read.step - 1]
            for side, other, kind, whither in (("cpu", "gpu", "call", TO_CPU), ("gpu", "cpu", "enqueue", TO_GPU)):
                if not units_of(work, side) or not units_of(written, other):
                    continue
                if is_local(work, written, read) and not units_of(work, side) & units_of(written, other):
                    continue
                transferred = [(o.kind, o.first, o.last) for o in operations]
                use = next(i for i, o in enumerate(operations) if o.step == step and o.kind == kind)
                assert transferred.index(("transfer", read.step - 1, whither)) < use


def test_events_let_the_queue_go_on_before_they_await_it() -> None:
    """A queue that is empty falls asleep: where the CPU's half is done first, the next is enqueued behind the GPU's."""
    chain = [Work(2, 3), *(Work(2, 3, (Read(number),), number == 2) for number in (1, 2))]
    lowered = lower(chain, "event")
    assert [(one.kind, one.step) for one in lowered.operations] == [
        *(("enqueue", 1), ("call", 1), ("transfer", 1)),
        *(("enqueue", 2), ("transfer", 1), ("call", 2), ("transfer", 2)),
        *(("enqueue", 3), ("transfer", 2), ("call", 3), ("transfer", 3)),
    ]
    assert lowered.sync_count == 3


@pytest.mark.parametrize("mechanism", ["svm", "event"])
def test_a_chain_on_its_sides_own_channels_synchronises_only_at_its_end(mechanism: str) -> None:
    chain = [Work(2, 3), *(Work(2, 3, (Read(number, local=("channels",)),)) for number in range(1, 5))]
    last = Work(2, 3, (Read(5, local=("channels",)),), True)
    kinds = [command.kind for command in lower([*chain, last], mechanism).commands]
    assert kinds == ["kernel"] * 6 + (["signal"] if mechanism == "svm" else [])
    assert lower([*chain, last], mechanism).sync_count == 1


@pytest.mark.parametrize(("gpu_units", "commands", "waits"), [(3, 0, 1), (4, 1, 1), (2, 0, 2)])
def test_a_side_whose_units_grow_waits_for_those_of_the_other(gpu_units: int, commands: int, waits: int) -> None:
    steps = [Work(2, 3), Work(5 - gpu_units, gpu_units, (Read(1, local=("channels",)),), True)]
    lowered = lower(steps, "svm")
    assert sum(command.kind.endswith("wait") for command in lowered.commands) == commands
    assert sum(operation.kind == "wait" for operation in lowered.operations) == waits


@dataclass(frozen=True)
class Named:
    output: str
    inputs: tuple[str, ...]
    local_inputs: tuple[str, ...] = ()
    units: int = 4
    axis: str = "channels"


def test_a_read_is_local_only_between_steps_that_are_divided_alike() -> None:
    steps = [
        Named("a", ("x",), ("x",)),
        Named("b", ("a",)),
        Named("c", ("b", "a"), ("a",)),
        Named("d", ("c",), ("c",), units=3),
        Named("e", ("c",), ("c",), axis="rows"),
    ]
    expected = [(), (Read(1),), (Read(2), Read(1, local=("channels",))), (Read(3),), (Read(3),)]
    assert network_reads(steps, {}) == expected


def test_who_reads_a_whole_reads_all_its_parts() -> None:
    parents = {"a": ("ab", "abc"), "b": ("ab", "abc"), "ab": ("abc",), "c": ("abc",)}
    steps = [
        Named("a", ("x",)),
        Named("b", ("x",), units=2),
        Named("c", ("a", "ab"), ("a", "ab")),
        Named("d", ("abc",), ("abc",)),
    ]
    read_all = tuple(Read(number) for number in (1, 2, 3))
    assert network_reads(steps, parents) == [(), (), (Read(1, local=("channels",)), Read(1), Read(2)), read_all]


def test_every_part_waits_for_who_used_its_memory_before() -> None:
    parents = {"a": ("ab",), "b": ("ab",)}
    steps = [Named("x", ()), Named("y", ("x",)), Named("a", ("y",)), Named("b", ("y",)), Named("z", ("ab",))]
    memory = {"x": "one", "y": "two", "a": "one", "b": "one", "ab": "one", "z": "two"}
    before = tuple(Read(number, overwrites=True) for number in (1, 2))
    assert network_reads(steps, parents, memory) == [
        (),
        (Read(1),),
        (Read(2), *before),
        (Read(2), *before),
        (Read(3), Read(4), *(Read(number, overwrites=True) for number in (2, 3, 4))),
    ]


@st.composite
def networks_in_memory(draw: st.DrawFn) -> tuple[list[Named], dict[str, str], list[int]]:
    """Steps that read some of those before them, where their outputs lie, and the GPU's units of each."""
    steps: list[Named] = []
    for number in range(draw(st.integers(2, 9))):
        inputs = draw(st.sets(st.sampled_from([step.output for step in steps[-4:]]), max_size=2)) if steps else set()
        local = tuple(name for name in sorted(inputs) if draw(st.booleans()))
        axis = draw(st.sampled_from(["lines", "lines", "channels"]))
        steps.append(Named(f"t{number}", tuple(sorted(inputs)), local, axis=axis))
    memory: dict[str, str] = {}
    for number, step in enumerate(steps):
        needed = {name for later in steps[number:] for name in later.inputs}
        taken = {memory[name] for name in needed if name in memory}
        memory[step.output] = draw(st.sampled_from(sorted({"a", "b", step.output} - taken)))
    return steps, memory, [draw(st.integers(0, step.units)) for step in steps]


class FlagsAndMemory(Flags):
    """Checks that no half overwrites what an earlier one of the other side may still read or write."""

    def __init__(self, steps: list[Named], memory: dict[str, str], gpu_units: list[int], seed: int) -> None:
        works = [
            Work(step.units - units, units, reads, axis=step.axis)
            for step, units, reads in zip(steps, gpu_units, network_reads(steps, {}, memory), strict=True)
        ]
        super().__init__(works, lower(works, "svm"), seed)
        self.blocks = [{memory[name] for name in (step.output, *step.inputs)} for step in steps]
        self.outputs = [memory[step.output] for step in steps]

    def check_reads(self, side: str, step: int) -> None:
        super().check_reads(side, step)
        other = "gpu" if side == "cpu" else "cpu"
        for earlier in range(1, step):
            if self.outputs[step - 1] in self.blocks[earlier - 1] and units_of(self.works[earlier - 1], other):
                assert earlier in self.done[other], f"{side} overwrites in {step} what {other} needs in {earlier}"


@given(networks_in_memory(), st.integers(0, 1000))
def test_memory_is_never_overwritten_early(network: tuple[list[Named], dict[str, str], list[int]], seed: int) -> None:
    FlagsAndMemory(*network, seed).run()


def test_one_side_alone_synchronises_nothing() -> None:
    chain = [Work(4, 0), Work(4, 0, (Read(1),)), Work(4, 0, (Read(2),), True)]
    lowered = lower(chain, "svm")
    assert [operation.kind for operation in lowered.operations] == ["call", "call", "call"]
    assert lowered.sync_count == 0


def test_a_signal_and_the_wait_after_it_are_one_launch() -> None:
    chain = [Work(1, 1), Work(1, 1, (Read(1),), True)]
    kinds = [command.kind for command in lower(chain, "svm").commands]
    assert kinds == ["kernel", "signal_wait", "kernel", "signal"]


def test_kernels_that_step_themselves_need_no_flag_kernels() -> None:
    chain = [Work(1, 1, gpu_steps=True), Work(1, 1, (Read(1),), True, gpu_launches=3, gpu_steps=True)]
    lowered = lower(chain, "svm")
    assert [command.kind for command in lowered.commands] == ["kernel"] * 4
    assert [(command.awaited, command.done) for command in lowered.commands] == [(0, 1), (1, 0), (0, 0), (0, 2)]
    assert lowered.sync_count == lower([replace(step, gpu_steps=False) for step in chain], "svm").sync_count


def test_the_last_gpu_step_is_awaited_even_if_nothing_reads_it() -> None:
    assert lower([Work(0, 1, (), True)], "svm").operations[-1].kind == "wait"


@pytest.mark.parametrize("mechanism", ["svm", "event"])
def test_every_command_is_enqueued_once(mechanism: str) -> None:
    chain = [Work(1, 1)] + [Work(1, 1, (Read(number),)) for number in range(1, 9)]
    lowered = lower(chain, mechanism)
    ranges = [(operation.first, operation.last) for operation in lowered.operations if operation.kind == "enqueue"]
    assert [first for first, _ in ranges] == [0, *(last for _, last in ranges[:-1])]
    assert ranges[-1][1] == len(lowered.commands)


def test_a_step_waits_for_one_that_is_divided_along_another_axis() -> None:
    first, second = Work(1, 1, axis="lines"), Work(1, 1, (Read(1, ("channels", "lines")),), True, axis="lines")
    assert lower([first, second], "svm").sync_count == 1, "only the end of the network"
    assert lower([first, replace(second, axis="channels")], "svm").sync_count == 3


def test_lines_of_a_whole_are_those_of_its_parts() -> None:
    @dataclass(frozen=True)
    class Part:
        output: str
        axis: str
        inputs: tuple[str, ...] = ()
        local_inputs: tuple[str, ...] = ()
        units: int = 4

    for axis, local in (("lines", ("lines",)), ("channels", ())):
        steps = [Part("a", axis), Part("b", axis), Part("c", axis, ("whole",), ("whole",))]
        assert network_reads(steps, {"a": ("whole",), "b": ("whole",)})[2] == (Read(1, local), Read(2, local))
