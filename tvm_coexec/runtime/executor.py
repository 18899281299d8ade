"""A loaded module on a device: its memory, and its kernels with their arguments."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tvm_coexec.errors import FileFormatError, KernelError, SyncTimeoutError, first_line
from tvm_coexec.graph.dependencies import Read
from tvm_coexec.module.manifest import ArgumentSpec, LaunchSpec, Manifest, Source, StepSpec, TensorSpec

from . import stitch
from .memory import Block, SvmMemory, memory_for, reach
from .prepared import Prepared
from .steps import CHAIN_ENTRY, SteppedSource, add_steps
from .sync import SyncKernels, build_newest

if TYPE_CHECKING:
    from .device import Device

_unfinished: list[Executor | Block] = []
"""Whose memory a kernel that hangs may still read and write."""

TIMEOUT_S = 5.0
"""Default bound on every wait of one processor for the other."""

_FIRST_LAUNCH_S = 600.0
"""Bound on a kernel's first launch, for which some drivers compile it, and all that are chained: for minutes."""

_POLL_S = 5e-5


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
        device.check_usable()
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
        self.stepped = add_steps(opencl_source, launches, chains=_chains(device))
        self._opencl = _build(device, self.stepped) if opencl_source.strip() else None
        self._launch_once()

    def _launches(self) -> list[LaunchSpec]:
        """The GPU's kernels, each once."""
        halves = [step.gpu for step in self.manifest.steps if step.gpu is not None]
        return list({launch.symbol: launch for half in halves for launch in half.launches}.values())

    def _allocate(self) -> dict[Source, Block]:
        """A block for all that a kernel touches; tensors of one slot have the same."""
        blocks = self._memory.allocate_all(self.manifest.memory_words())
        return {source: blocks[memory] for source, memory in self.manifest.memory_of().items()}

    def _launch_once(self) -> None:
        """Launch every kernel, for one unit, and the entry of chained ones, while no memory holds anything yet.

        Some drivers compile a kernel when it is first launched, for seconds that no bound on waits allows for.
        """
        import pyopencl as cl

        try:
            for launch in self._launches():
                if launch.symbol not in self.stepped.chained:
                    self._launch_alone(self.layer_kernel(launch, 1), launch.sizes(1), launch.group)
            if self.stepped.chained:
                table = self.allocate_table(1)
                try:
                    self._launch_alone(self.chain_kernel(table, 0, 0), (1, 1), (1, 1))
                finally:
                    self.retire(table, self.device.queue)
        except cl.Error as error:
            raise KernelError(
                f"{self.device.info.name} cannot run the module's OpenCL code ({error}); build it with other variants"
            ) from None

    def _launch_alone(self, kernel: Any, sizes: tuple[int, int], group: tuple[int, int]) -> None:
        import pyopencl as cl

        event = cl.enqueue_nd_range_kernel(self.device.queue, kernel, sizes, group)
        self.device.queue.flush()
        deadline = time.monotonic() + _FIRST_LAUNCH_S
        while event.command_execution_status > cl.command_execution_status.COMPLETE:
            if time.monotonic() > deadline:
                self.give_up(
                    f"the kernel {kernel.function_name} is neither compiled nor done on {self.device.info.name} within "
                    f"{_FIRST_LAUNCH_S:g} s: restart the process, and build the module with other variants"
                )
            time.sleep(_POLL_S)
        event.wait()  # raises the error of a launch that failed

    def layer_kernel(self, launch: LaunchSpec, units: int, awaited: int = 0, done: int = 0) -> Any:
        """A layer's kernel with its arguments, to compute ``units`` units; it may await and report steps."""
        arguments = [self.blocks[argument.source].argument for argument in launch.arguments]
        arguments += [np.int32(0), np.int32(units)]
        if launch.symbol in self.stepped.own and self.sync:
            arguments += self.sync.step_arguments(awaited, done)
            kernel = self.opencl_kernel(f"{launch.symbol}_step")
        else:
            kernel = self.opencl_kernel(f"{launch.symbol}_kernel")
        kernel.set_args(*arguments)
        return kernel

    def allocate_table(self, rows: int) -> Block:
        """What the entry of chained kernels reads."""
        return self._memory.allocate(rows * self.stepped.row_words, "uint64")

    def give_up(self, why: str) -> NoReturn:
        """The GPU hangs: no later run is begun, and what its kernels may still touch stays, whoever lets go of it.

        Raises
        ------
        SyncTimeoutError
            With the reason, as whatever uses the device from now on.
        """
        self.device.hang = why
        if self.sync:
            self.sync.leave_lingering()
        _unfinished.append(self)
        raise SyncTimeoutError(why)

    def retire(self, table: Block, queue: Any) -> None:
        """Let go of a table once no launch in a queue reads it, which after a hang may be never."""
        if self.device.hang:
            _unfinished.append(table)
        else:
            queue.finish()

    def table_row(self, launch: LaunchSpec, units: int, awaited: int, done: int) -> list[int]:
        """A layer's chained kernel with its arguments; see :meth:`layer_kernel`."""
        addresses = [self.blocks[argument.source].address for argument in launch.arguments]
        return self.stepped.row(launch.symbol, (awaited, done), launch.grid_for(units), [*addresses, 0, units])

    def chain_kernel(self, table: Block, first: int, last: int) -> Any:
        """The entry of chained kernels, to compute some rows of a table."""
        assert self.sync is not None
        kernel = self.opencl_kernel(CHAIN_ENTRY)
        kernel.set_args(
            table.argument, np.int32(first), np.int32(last), self.sync.flags.argument, np.uint64(self.sync.limit)
        )
        reach(kernel, self.blocks.values())
        return kernel

    def view(self, name: str) -> np.ndarray:
        """The CPU's view of a tensor; see :meth:`TensorSpec.view`."""
        return self._tensors[name].view(self.tensor_block(name).array)

    def write(self, name: str, array: np.ndarray) -> None:
        """Fill a tensor with elements in its user's order."""
        self._tensors[name].write(self.tensor_block(name).array, array)

    def read(self, name: str) -> np.ndarray:
        """A copy of a tensor in its user's order."""
        return self._tensors[name].read(self.tensor_block(name).array)

    def tensor_block(self, name: str) -> Block:
        """The memory that holds a tensor, which others may share."""
        return self.blocks[Source.tensor(name)]

    def write_constants(self, constants: Mapping[Source, np.ndarray]) -> dict[Source, np.ndarray]:
        """Fill memory that no program writes; returns views of it, which do not keep it: the executor does."""
        views = {}
        for source, array in constants.items():
            memory = self.blocks[source].array.view(np.uint8)[: array.nbytes]
            views[source] = memory.view(array.dtype).reshape(array.shape)
            views[source][...] = array
            self.blocks[source].publish(self.device.queue)
        return views

    def publish(self, names: Sequence[str]) -> None:
        """Let the device see what was written to tensors while no program ran."""
        for name in names:
            self.tensor_block(name).publish(self.device.queue)

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


def _chains(device: Device) -> bool:
    """Whether to chain kernels: a CPU device of one compute unit computes groups one after the other, and each launch
    costs it 2 to 6 us. Chained kernels are timed by the processor's counter, which other machines keep to themselves.
    """
    return device.is_bench and device.info.compute_units == 1 and platform.machine() in ("x86_64", "AMD64")


def _build(device: Device, source: SteppedSource) -> Any:
    import pyopencl as cl

    try:
        # flags, and sums over work-groups, need fences of the device's scope, which OpenCL C has from 2.0 on
        if source.symbols or "memory_scope_device" in source.text:
            return build_newest(device, source.text)
        return device.build(source.text)
    except cl.Error as error:
        raise KernelError(f"{device.info.name} refuses the module's OpenCL code: {first_line(error)}") from None
