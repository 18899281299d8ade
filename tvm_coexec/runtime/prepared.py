"""Programs for the stitch: a sequence of steps, each divided at some place, with every array that a run reads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_coexec.errors import DeviceError, InputError, KernelError, SyncTimeoutError
from tvm_coexec.graph.dependencies import Read, Work
from tvm_coexec.layers import ROW_BLOCK
from tvm_coexec.module.manifest import HalfSpec, LaunchSpec, StepSpec, TensorSpec

from . import stitch
from .program import Call, Command, Lowered, Operation, lower
from .steps import STAMPS

if TYPE_CHECKING:
    from .executor import Executor


class Prepared:
    """A program with every array that the stitch reads, kept alive together."""

    def __init__(
        self,
        executor: Executor,
        sequence: Sequence[tuple[StepSpec, int]],
        reads: Sequence[tuple[Read, ...]],
        timeline: bool,
    ) -> None:
        self.executor = executor
        self.steps = [step for step, _ in sequence]
        manifest = executor.manifest
        works, chains = [], True
        for number, ((step, cpu_units), read) in enumerate(zip(sequence, reads, strict=True), 1):
            check_split(step, cpu_units)
            written = {step.output, *executor.spec(step.output).parents}
            is_output = not written.isdisjoint(manifest.outputs) or number == len(sequence)
            gpu_units = step.units - cpu_units
            cpu_launches = len(_half(step, "cpu").launches) if cpu_units else 0
            symbols = [launch.symbol for launch in _half(step, "gpu").launches] if gpu_units else []
            is_chained = set(symbols).issubset(executor.stepped.chained)
            # an event of a kernel by itself must not hold its wait
            gpu_steps = bool(symbols) and (is_chained or not timeline) and executor.stepped.symbols.issuperset(symbols)
            chains = chains and is_chained
            works.append(Work(cpu_units, gpu_units, read, is_output, cpu_launches, len(symbols), gpu_steps, step.axis))
        self.works = works
        mechanism = executor.device.mechanism
        self.lowered: Lowered = lower(works, mechanism, len(manifest.inputs), chains=chains)
        self._keep: list[Any] = []
        self._kernels: dict[Any, Any] = {}
        self.timeline = timeline
        self.table = executor.allocate_table(len(self.lowered.commands)) if executor.stepped.chained else None
        self.program = self._program()
        if executor.library.start(self.program):
            raise DeviceError("the CPU threads cannot be started; ask for fewer --cpu-cores")

    def _program(self) -> stitch.Program:
        executor, device, sync = self.executor, self.executor.device, self.executor.sync
        launched: list[stitch.Command] = []
        self._launched_as: list[int] = []
        operations = (stitch.Operation * len(self.lowered.operations))(
            *(self._operation(operation, launched) for operation in self.lowered.operations)
        )
        commands = (stitch.Command * len(launched))(*launched)
        calls = (stitch.Call * len(self.lowered.calls))(*map(self._call, self.lowered.calls))
        exchanges = self._exchanges()
        cores = stitch.numbers(device.cpu_cores)
        self.operation_ns = stitch.nanoseconds(len(operations))
        self.events = (ctypes.c_void_p * len(commands))()
        self.queue = device.profiling_queue if self.timeline else device.queue
        self._keep += [operations, commands, calls, exchanges, cores]
        return stitch.Program(
            operations=operations,
            commands=commands,
            calls=calls,
            exchanges=exchanges,
            operation_count=len(operations),
            command_count=len(commands),
            queue=self.queue.int_ptr,
            flags=sync.flags.address if sync else None,
            active=sync.active.address if sync else None,
            linger=sync.linger.int_ptr if sync and not executor.yields else None,
            timeout_ns=int(executor.timeout_s * 1e9),
            cores=cores,
            core_count=len(cores),
            yields=executor.yields,
            operation_ns=self.operation_ns.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)),
            events=self.events if self.timeline else None,
        )

    def _call(self, call: Call) -> stitch.Call:
        step, work = self.steps[call.step - 1], self.works[call.step - 1]
        launch = _half(step, "cpu").launches[call.launch]
        tensors = [self.executor.tensor_argument(argument) for argument in launch.arguments]
        made = stitch.Call.of(self.executor.library.kernel(launch.symbol), tensors, work.gpu_units, work.cpu_units)
        self._keep += [tensors, made]
        return made

    def _operation(self, operation: Operation, launched: list[stitch.Command]) -> stitch.Operation:
        """An operation for the stitch; what it enqueues is appended to the commands that are ``launched``."""
        first, last = operation.first, operation.last
        if operation.kind == "enqueue":
            start = len(launched)
            for is_chained, together in groupby(range(first, last), self.is_chained):
                self._launch_commands(list(together), is_chained, launched)
            first, last = start, len(launched)
        return stitch.Operation(stitch.OPERATION_KINDS.index(operation.kind), operation.step, first, last)

    def _launch_commands(self, numbers: list[int], is_chained: bool, launched: list[stitch.Command]) -> None:
        """Append a launch for each command, or one for all of them where they are chained."""
        if is_chained:
            self._launched_as += [len(launched)] * len(numbers)
            launched.append(self._chain(numbers[0], numbers[-1] + 1))
        else:
            self._launched_as += range(len(launched), len(launched) + len(numbers))
            launched += (self._command(self.lowered.commands[number]) for number in numbers)

    @property
    def held_by_threads(self) -> int:
        """Bytes of scratch memory that kernels on the CPU's threads have wanted so far."""
        return int(self.executor.library.held_bytes(self.program))

    @property
    def keeps_time(self) -> bool:
        """Whether the GPU does the same with a timeline as without: no flag has a kernel of its own for it."""
        return all(command.kind == "kernel" for command in self.lowered.commands)

    def is_chained(self, number: int) -> bool:
        """Whether a command is a row of the table."""
        command = self.lowered.commands[number]
        return command.kind == "kernel" and self._launch(command).symbol in self.executor.stepped.chained

    def _chain(self, first: int, last: int) -> stitch.Command:
        assert self.table is not None
        for number in range(first, last):
            command = self.lowered.commands[number]
            units = self.works[command.step - 1].gpu_units
            self._rows[number] = self.executor.table_row(self._launch(command), units, command.awaited, command.done)
        kernel = self.executor.chain_kernel(self.table, first, last)
        self._keep.append(kernel)
        return stitch.Command(kernel.int_ptr, (1, 1), (1, 1))

    @property
    def _rows(self) -> np.ndarray:
        assert self.table is not None
        rows: np.ndarray = self.table.array.reshape(-1, self.executor.stepped.row_words)
        return rows

    def _launch(self, command: Command) -> LaunchSpec:
        return _half(self.steps[command.step - 1], "gpu").launches[command.launch]

    def _command(self, command: Command) -> stitch.Command:
        if command.kind != "kernel":
            assert self.executor.sync is not None
            kernel = self.executor.sync.kernel(command)
            self._keep.append(kernel)
            return stitch.Command(kernel.int_ptr, (1, 1), (1, 1))
        launch, gpu_units = self._launch(command), self.works[command.step - 1].gpu_units
        kernel = self._layer_kernel(launch, gpu_units, command)
        return stitch.Command(kernel.int_ptr, launch.sizes(gpu_units), launch.group)

    def _layer_kernel(self, launch: LaunchSpec, gpu_units: int, command: Command) -> Any:
        """The kernel with its arguments; commands that agree in all of them share one."""
        key = (launch, gpu_units, command.awaited, command.done)
        if key not in self._kernels:
            self._kernels[key] = self.executor.layer_kernel(launch, gpu_units, command.awaited, command.done)
        return self._kernels[key]

    def _exchanges(self) -> Any:
        """One for each step's output, then one for each input of the module."""
        if self.executor.sync is not None:
            return (stitch.Exchange * 0)()
        outputs = [
            self._exchange(step.output, step, work.gpu_units) for step, work in zip(self.steps, self.works, strict=True)
        ]
        inputs = [self._exchange(name, None, 0) for name in self.executor.manifest.inputs]
        return (stitch.Exchange * (len(outputs) + len(inputs)))(*outputs, *inputs)

    def _exchange(self, name: str, step: StepSpec | None, gpu_units: int) -> stitch.Exchange:
        """What travels after a step; all of an input, which no step writes, from the CPU."""
        block, tensor = self.executor.tensor_block(name), self.executor.spec(name)
        rows, row_bytes = tensor.memory_rows, tensor.row_bytes
        begin, end = tensor.own_bytes
        if step is not None and step.axis == "channels":
            edge = min(begin + gpu_units * step.unit_channels * 4, end)
            gpu = ((begin, 0, 0), (edge - begin, rows if edge > begin else 0, 1))
            cpu = ((edge, 0, 0), (end - edge, rows, 1))
        else:
            edge = _memory_rows(step, tensor, gpu_units) if step is not None else 0
            gpu = ((begin, 0, 0), (end - begin if edge else 0, edge, 1))
            cpu = ((begin, edge, 0), (end - begin if edge < rows else 0, rows - edge, 1))
        return stitch.Exchange(
            buffer=block.buffer.int_ptr,
            host=block.address,
            bytes=block.array.nbytes,
            unified=self.executor.device.info.unified_memory,
            row_bytes=row_bytes,
            gpu_origin=gpu[0],
            gpu_region=gpu[1],
            cpu_origin=cpu[0],
            cpu_region=cpu[1],
        )

    def run(self) -> None:
        """Run once; raises where a side waits in vain, or a kernel or OpenCL fails."""
        self.executor.device.check_usable()
        status = self.executor.library.run(self.program)
        if status != stitch.STATUS_OK:
            self._raise(status)

    def _raise(self, status: int) -> None:
        program, device = self.program, self.executor.device
        if self.timeline and status not in (stitch.STATUS_GPU_HANGS, stitch.STATUS_OPENCL_FAILED):
            self.take_events()
        step = program.status_step
        layer = self.steps[step - 1].name if 0 < step <= len(self.steps) else "the module's inputs"
        bound = f"{self.executor.timeout_s:g} s"
        if status == stitch.STATUS_CPU_WAITED:
            raise SyncTimeoutError(
                f"layer {layer!r}: the CPU waited {bound} for the GPU half, which did not come; raise timeout_s if the "
                f"layer takes longer, else check {device.info.name} with `tvm-coexec doctor`"
            )
        if status == stitch.STATUS_GPU_WAITED:
            raise SyncTimeoutError(
                f"layer {layer!r}: the GPU waited for longer than {bound} for the CPU half, which did not come; raise "
                "timeout_s if the layer takes longer"
            )
        if status == stitch.STATUS_GPU_HANGS:
            self.executor.give_up(
                f"layer {layer!r}: the GPU does not finish within {bound}, even after its waits were ended; a kernel "
                f"hangs on {device.info.name}: restart the process"
            )
        if status == stitch.STATUS_KERNEL_FAILED:
            raise KernelError(f"layer {layer!r}: the CPU kernel failed: {program.text.decode(errors='replace')}")
        raise DeviceError(f"layer {layer!r}: OpenCL error {program.opencl_error} on {device.info.name}")

    def gpu_spans_us(self) -> list[tuple[float, float]]:
        """When each command of the last run of a program with a timeline began and ended, from the start of the run.

        Chained kernels say it themselves, and begin when what they await is there; for others it is their event.
        """
        events = self.take_events()
        if not events:
            return []
        offset_ns = events[0].profile.queued - self._enqueue_ns()
        program, spans_us = self.program, []
        us_per_tick = (program.end_ns - program.start_ns) / 1e3 / max(program.end_ticks - program.start_ticks, 1)
        for number, place in enumerate(self._launched_as):
            if self.is_chained(number):
                start, end = (int(ticks) - program.start_ticks for ticks in self._rows[number, STAMPS])
                spans_us.append((start * us_per_tick, end * us_per_tick))
            else:
                profile = events[place].profile
                spans_us.append(((profile.start - offset_ns) / 1e3, (profile.end - offset_ns) / 1e3))
        return spans_us

    def take_events(self) -> list[Any]:
        """The OpenCL events of the last run, one for each launch; none without a timeline."""
        import pyopencl as cl

        self.executor.device.profiling_queue.finish()
        events = [cl.Event.from_int_ptr(pointer, retain=False) for pointer in self.events if pointer]
        ctypes.memset(self.events, 0, ctypes.sizeof(self.events))
        return events

    def _enqueue_ns(self) -> int:
        """When the first command was queued, from the start of the run."""
        kinds = [operation.kind for operation in self.lowered.operations]
        return int(self.operation_ns[kinds.index("enqueue")][0])

    def close(self) -> None:
        if self.executor.device.is_forked:
            return  # a fork has no threads to stop
        self.executor.library.stop(self.program)
        if self.table is not None:
            self.executor.retire(self.table, self.queue)
            self.table = None

    def __del__(self) -> None:
        if hasattr(self, "program"):
            self.close()


def _memory_rows(step: StepSpec, tensor: TensorSpec, units: int) -> int:
    """Rows in memory that the first units of a step by rows or lines fill, halos above and below the image included."""
    if units == step.units:
        return tensor.memory_rows
    if step.unit_lines is None:
        return units * ROW_BLOCK
    assert tensor.image is not None and tensor.layout is not None
    _, width = tensor.layout.extents(*tensor.image[1:3])
    return (tensor.layout.halo[0] + units * step.unit_lines) * width if units else 0


def check_split(step: StepSpec, cpu_units: int) -> None:
    """Refuse a split that the step does not have."""
    if not 0 <= cpu_units <= step.units:
        raise InputError(f"layer {step.name!r} has {step.units} units; the CPU cannot compute {cpu_units} of them")


def _half(step: StepSpec, side: str) -> HalfSpec:
    half = step.cpu if side == "cpu" else step.gpu
    if half is None:
        raise KernelError(f"layer {step.name!r} was built without a {side.upper()} half; build it with another split")
    return half
