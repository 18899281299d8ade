"""Sets up the stitch's programs for a loaded module: memory, kernels with their arguments, any split."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_coexec.errors import DeviceError, FileFormatError, InputError, KernelError, SyncTimeoutError
from tvm_coexec.layers import ROW_BLOCK

from . import stitch
from .manifest import ArgumentSpec, HalfSpec, LaunchSpec, Manifest, StepSpec, TensorSpec
from .memory import Block, SvmMemory, memory_for
from .program import Call, Command, Lowered, Read, Work, lower, network_reads
from .steps import SteppedSource, add_steps
from .sync import SyncKernels, build_newest

if TYPE_CHECKING:
    from .device import Device

TIMEOUT_S = 5.0
"""Default bound on every wait of one processor for the other."""


@dataclass
class Event:
    """One thing that a side did in a run, for the timeline; times from the start of the run."""

    side: str
    kind: str
    step: str
    start_us: float
    end_us: float


class Executor:
    """A module's code and memory on one device; prepares programs for sequences of its steps."""

    def __init__(
        self,
        manifest: Manifest,
        library_path: Path,
        opencl_source: str,
        device: Device,
        *,
        timeout_s: float,
        yields: bool,
    ) -> None:
        self.manifest = manifest
        self.device = device
        self.timeout_s = timeout_s
        self.yields = yields
        self.library = stitch.Library(library_path)
        self._memory = memory_for(device)
        self._tensors = {tensor.name: tensor for tensor in manifest.tensors}
        self.blocks = self._allocate()
        self.sync = SyncKernels(device, self._memory, timeout_s) if isinstance(self._memory, SvmMemory) else None
        launches = self._launches() if self.sync else []
        # a CPU device of one compute unit runs groups one after the other, and Intel's is quicker to launch one
        in_turn = device.is_bench and device.info.compute_units == 1
        self.stepped = add_steps(opencl_source, launches, in_turn=in_turn)
        self._opencl = _build(device, self.stepped) if opencl_source.strip() else None
        self._launch_once()

    def _launches(self) -> list[LaunchSpec]:
        """The GPU's kernels, each once."""
        halves = [step.gpu for step in self.manifest.steps if step.gpu is not None]
        return list({launch.symbol: launch for half in halves for launch in half.launches}.values())

    def _allocate(self) -> dict[str, Block]:
        """A block for all that a kernel touches; tensors of one slot have the same."""
        blocks = {memory: self._memory.allocate(count) for memory, count in self.manifest.memory_words().items()}
        return {name: blocks[memory] for name, memory in self.manifest.shared().items()}

    def _launch_once(self) -> None:
        """Launch every kernel for one unit, while no memory holds anything yet.

        Some drivers compile a kernel when it is first launched, for seconds that no bound on waits allows for.
        """
        import pyopencl as cl

        try:
            for launch in self._launches():
                sizes = self.launch_sizes(launch, 1)
                cl.enqueue_nd_range_kernel(self.device.queue, self.layer_kernel(launch, 1), sizes, launch.group)
            self.device.queue.finish()
        except cl.Error as error:
            raise KernelError(
                f"{self.device.info.name} cannot run the module's OpenCL code ({error}); build it with other variants"
            ) from None

    def layer_kernel(self, launch: LaunchSpec, units: int, awaited: int = 0, done: int = 0) -> Any:
        """A layer's kernel with its arguments, to compute ``units`` units; it may await and report steps."""
        arguments = [self.blocks[argument.source].argument for argument in launch.arguments]
        arguments += [np.int32(0), np.int32(units)]
        if launch.symbol in self.stepped.symbols and self.sync:
            arguments += [*self.sync.step_arguments(awaited, done), *map(np.int32, launch.grid_for(units))]
            kernel = self.opencl_kernel(f"{launch.symbol}_step")
        else:
            kernel = self.opencl_kernel(f"{launch.symbol}_kernel")
        kernel.set_args(*arguments)
        return kernel

    def launch_sizes(self, launch: LaunchSpec, units: int) -> tuple[int, int]:
        """Work-items on both axes."""
        columns, lines = self.stepped.launched(launch.symbol, launch.grid_for(units))
        return columns * launch.group[0], lines * launch.group[1]

    def view(self, name: str) -> np.ndarray:
        """The CPU's view of a tensor; see :meth:`TensorSpec.view`."""
        return self._tensors[name].view(self.blocks[name].array)

    def write(self, name: str, array: np.ndarray) -> None:
        """Fill a tensor with elements in its user's order."""
        self._tensors[name].write(self.blocks[name].array, array)

    def read(self, name: str) -> np.ndarray:
        """A copy of a tensor in its user's order."""
        return self._tensors[name].read(self.blocks[name].array)

    def publish(self, names: Sequence[str]) -> None:
        for name in names:
            self.blocks[name].publish(self.device.queue)

    def prepare(
        self, sequence: Sequence[tuple[StepSpec, int]], reads: Sequence[tuple[Read, ...]], *, timeline: bool = False
    ) -> Prepared:
        """A program that runs steps, each with its CPU units.

        With a ``timeline``, every command of the GPU has an event.
        """
        return Prepared(self, sequence, reads, timeline)

    def prepare_part(self, step: StepSpec, cpu_units: int, gpu_units: int) -> Prepared:
        """A program of one step of which the sides may leave units out."""
        return self.prepare([(replace(step, units=cpu_units + gpu_units), cpu_units)], [()])

    def network_reads(self) -> list[tuple[Read, ...]]:
        """For each step of the module the steps that it has to wait for."""
        return network_reads(self.manifest.steps, self.manifest.wholes(), self.manifest.shared())

    def opencl_kernel(self, name: str) -> Any:
        """A kernel object of its own, since arguments belong to the object."""
        import pyopencl as cl

        try:
            return cl.Kernel(self._opencl, name)
        except (cl.Error, TypeError) as error:
            raise FileFormatError(
                f"the module's OpenCL code has no kernel {name!r} ({error}); build it again"
            ) from None

    def tensor_argument(self, argument: ArgumentSpec) -> stitch.Tensor:
        return stitch.Tensor.of(self.blocks[argument.source].address, argument.shape, argument.dtype)

    def spec(self, name: str) -> TensorSpec:
        return self._tensors[name]


def _build(device: Device, source: SteppedSource) -> Any:
    import pyopencl as cl

    try:
        if source.symbols:
            return build_newest(device, source.text)
        return cl.Program(device.context, source.text).build(cache_dir=False)
    except cl.Error as error:
        first = str(error).strip().splitlines()
        raise KernelError(
            f"{device.info.name} refuses the module's OpenCL code: {first[0] if first else error}"
        ) from None


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
        works = []
        for number, ((step, cpu_units), read) in enumerate(zip(sequence, reads, strict=True), 1):
            check_split(step, cpu_units)
            written = {step.output, *executor.spec(step.output).wholes}
            is_output = not written.isdisjoint(manifest.outputs) or number == len(sequence)
            gpu_units = step.units - cpu_units
            cpu_launches = len(_half(step, "cpu").launches) if cpu_units else 0
            gpu_launches = len(_half(step, "gpu").launches) if gpu_units else 0
            gpu_steps = bool(gpu_units) and not timeline and self._steps_itself(step)
            works.append(Work(cpu_units, gpu_units, read, is_output, cpu_launches, gpu_launches, gpu_steps, step.axis))
        self.works = works
        mechanism = executor.device.mechanism
        self.lowered: Lowered = lower(works, mechanism, len(manifest.inputs))
        self._keep: list[Any] = []
        self._kernels: dict[tuple[LaunchSpec, int, int, int], Any] = {}
        self.timeline = timeline
        self.program = self._program()
        if executor.library.start(self.program):
            raise DeviceError("the CPU threads cannot be started; ask for fewer --cpu-cores")

    def _steps_itself(self, step: StepSpec) -> bool:
        """Whether all kernels of the GPU half can await and report steps."""
        return all(launch.symbol in self.executor.stepped.symbols for launch in _half(step, "gpu").launches)

    def _program(self) -> stitch.Program:
        executor, device, sync = self.executor, self.executor.device, self.executor.sync
        operations = (stitch.Operation * len(self.lowered.operations))(
            *(
                stitch.Operation(
                    stitch.OPERATION_KINDS.index(operation.kind), operation.step, operation.first, operation.last
                )
                for operation in self.lowered.operations
            )
        )
        commands = (stitch.Command * len(self.lowered.commands))(*map(self._command, self.lowered.commands))
        calls = (stitch.Call * len(self.lowered.calls))(*map(self._call, self.lowered.calls))
        exchanges = self._exchanges()
        cores = stitch.numbers(device.cpu_cores)
        self.operation_ns = stitch.nanoseconds(len(operations))
        self.events = (ctypes.c_void_p * len(commands))()
        queue = device.profiling_queue if self.timeline else device.queue
        self._keep += [operations, commands, calls, exchanges, cores, queue]
        return stitch.Program(
            operations=operations,
            commands=commands,
            calls=calls,
            exchanges=exchanges,
            operation_count=len(operations),
            command_count=len(commands),
            call_count=len(calls),
            exchange_count=len(exchanges),
            queue=queue.int_ptr,
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

    def _command(self, command: Command) -> stitch.Command:
        if command.kind != "kernel":
            assert self.executor.sync is not None
            kernel = self.executor.sync.kernel(command)
            self._keep.append(kernel)
            return stitch.Command(kernel.int_ptr, (1, 1), (1, 1))
        step, work = self.steps[command.step - 1], self.works[command.step - 1]
        launch = _half(step, "gpu").launches[command.launch]
        kernel = self._layer_kernel(launch, work.gpu_units, command)
        return stitch.Command(kernel.int_ptr, self.executor.launch_sizes(launch, work.gpu_units), launch.group)

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
        block, tensor = self.executor.blocks[name], self.executor.spec(name)
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
        status = self.executor.library.run(self.program)
        if status != stitch.STATUS_OK:
            self._raise(status)

    def _raise(self, status: int) -> None:
        program, device = self.program, self.executor.device
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
            raise SyncTimeoutError(
                f"layer {layer!r}: the GPU does not finish within {bound}, even after its waits were ended; a kernel "
                f"hangs on {device.info.name}: restart the process"
            )
        if status == stitch.STATUS_KERNEL_FAILED:
            raise KernelError(f"layer {layer!r}: the CPU kernel failed: {program.text.decode(errors='replace')}")
        raise DeviceError(f"layer {layer!r}: OpenCL error {program.opencl_error} on {device.info.name}")

    def take_events(self) -> list[Any]:
        """The OpenCL events of the last run of a program with a timeline, one for each command."""
        import pyopencl as cl

        self.executor.device.profiling_queue.finish()
        events = [cl.Event.from_int_ptr(pointer, retain=False) for pointer in self.events]
        ctypes.memset(self.events, 0, ctypes.sizeof(self.events))
        return events

    def close(self) -> None:
        self.executor.library.stop(self.program)

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
