"""Kernels that await and report steps themselves: groups of every size, bounded waits, a counter that starts anew."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.manifest import LaunchSpec
from tvm_coexec.runtime.memory import SvmMemory, reach
from tvm_coexec.runtime.steps import CHAIN_ENTRY, add_steps
from tvm_coexec.runtime.stitch import FLAG_WORDS
from tvm_coexec.runtime.sync import FLAGS_SOURCE, SyncKernels, build_newest

GPU_DONE, CPU_DONE, ABORT, GPU_GAVE_UP, GROUPS_DONE = 0, 32, 64, 96, 128
NUMBERS = """
__kernel void numbers_kernel(__global float* restrict p0_output_ptr, int begin, int count);
__kernel void numbers_kernel(__global float* restrict p0_output_ptr, int begin, int count) {
  int row = get_group_id(0) * get_local_size(0) + get_local_id(0);
  int column = get_group_id(1) * get_local_size(1) + get_local_id(1);
  p0_output_ptr[row * count + column] += 1.0f;
}
"""
SHARING = """
__kernel void sharing_kernel(__global float* restrict p0_output_ptr, int begin, int count) {
  __local float shared_sum[4];
  shared_sum[get_local_id(0)] = begin + count;
  p0_output_ptr[get_global_id(0)] = shared_sum[get_local_id(0)];
}
"""
GEOMETRIES = [((1, 1), (1, 1)), ((40, 3), (1, 1)), ((8, 6), (4, 2)), ((64, 1), (16, 1)), ((4, 4), (4, 4))]


class Launcher:
    """Launches the entry of ``NUMBERS`` with flags of its own."""

    def __init__(self, device: Device, sizes: tuple[int, int], group: tuple[int, int], timeout_s: float = 5.0) -> None:
        import pyopencl as cl

        if device.mechanism != "svm":
            pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
        memory = SvmMemory(device)
        self.device, self.sizes, self.group = device, sizes, group
        self.sync = SyncKernels(device, memory, timeout_s)
        self.flags = self.sync.flags.array
        self.output = memory.allocate(sizes[0] * sizes[1])
        source = add_steps(NUMBERS, [LaunchSpec("numbers", (), group=group)], chains=False)
        self.kernel = cl.Kernel(build_newest(device, source.text), "numbers_step")
        self.launch(0, 0)  # some drivers compile now
        device.queue.finish()
        self.output.array[:] = 0

    def launch(self, awaited: int, done: int) -> None:
        import pyopencl as cl

        arguments = self.sync.step_arguments(awaited, done)
        self.kernel.set_args(self.output.argument, np.int32(0), np.int32(self.sizes[1]), *arguments)
        cl.enqueue_nd_range_kernel(self.device.queue, self.kernel, self.sizes, self.group)
        self.device.queue.flush()


@pytest.mark.parametrize(("sizes", "group"), GEOMETRIES)
def test_a_step_is_reported_once_by_the_last_group(
    sizes: tuple[int, int], group: tuple[int, int], device: Device
) -> None:
    launcher = Launcher(device, sizes, group)
    for step in range(1, 6):
        launcher.launch(0, step)
        device.queue.finish()
        assert launcher.flags[GPU_DONE] == step
        assert launcher.flags[GROUPS_DONE] == 0
        assert np.all(launcher.output.array == step)


@pytest.mark.parametrize(("sizes", "group"), GEOMETRIES)
def test_nothing_is_computed_before_the_awaited_flag(
    sizes: tuple[int, int], group: tuple[int, int], device: Device
) -> None:
    launcher = Launcher(device, sizes, group, timeout_s=30.0)
    launcher.launch(7, 8)
    assert np.all(launcher.output.array == 0)
    assert launcher.flags[GPU_DONE] == 0
    launcher.flags[CPU_DONE] = 7
    device.queue.finish()
    assert np.all(launcher.output.array == 1)
    assert launcher.flags[GPU_DONE] == 8
    assert launcher.flags[ABORT] == launcher.flags[GPU_GAVE_UP] == 0


@pytest.mark.parametrize(("sizes", "group"), GEOMETRIES)
def test_a_flag_that_never_comes_ends_every_group_and_the_counter_starts_anew(
    sizes: tuple[int, int], group: tuple[int, int], device: Device
) -> None:
    launcher = Launcher(device, sizes, group, timeout_s=0.05)
    launcher.launch(3, 4)
    device.queue.finish()
    assert launcher.flags[GPU_GAVE_UP] == 3
    assert launcher.flags[ABORT] == 1
    assert launcher.flags[GROUPS_DONE] == 0
    launcher.flags[:] = 0
    launcher.launch(0, 1)
    device.queue.finish()
    assert launcher.flags[GPU_DONE] == 1


class Chain:
    """Launches rows of a table of steps, each of which adds 1 to all numbers of ``NUMBERS``."""

    rows, columns = 40, 3

    def __init__(self, device: Device, steps: Sequence[tuple[int, int]], timeout_s: float = 30.0) -> None:
        import pyopencl as cl

        if device.mechanism != "svm":
            pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
        memory = SvmMemory(device)
        self.device, self.sync = device, SyncKernels(device, memory, timeout_s)
        self.flags = self.sync.flags.array
        self.output = memory.allocate(self.rows * self.columns)
        source = add_steps(SHARING + NUMBERS, [LaunchSpec("numbers", ()), LaunchSpec("sharing", ())], chains=True)
        assert source.chained == ("numbers",) and not source.own
        self.table = memory.allocate(len(steps) * source.row_words, "uint64")
        arguments = (self.output.address, 0, self.columns)
        grid = (self.rows, self.columns)
        self.table.array[:] = [word for step in steps for word in source.row("numbers", step, grid, arguments)]
        self.kernel = cl.Kernel(build_newest(device, source.text), CHAIN_ENTRY)
        self.launch(0, 0)  # some drivers compile now
        device.queue.finish()

    def launch(self, first: int, last: int) -> None:
        import pyopencl as cl

        numbers = np.int32(first), np.int32(last), self.sync.flags.argument, np.uint64(self.sync.limit)
        self.kernel.set_args(self.table.argument, *numbers)
        reach(self.kernel, [self.output])
        cl.enqueue_nd_range_kernel(self.device.queue, self.kernel, (1, 1), (1, 1))
        self.device.queue.flush()


def test_a_chain_computes_its_rows_and_no_others(device: Device) -> None:
    chain = Chain(device, [(0, 1), (0, 0), (0, 3), (0, 4)])
    for first, last, done, sums in ((0, 1, 1, 1), (1, 2, 1, 2), (1, 4, 4, 5)):
        chain.launch(first, last)
        device.queue.finish()
        assert chain.flags[GPU_DONE] == done
        assert np.all(chain.output.array == sums)


def test_a_chain_awaits_a_flag_between_its_rows(device: Device) -> None:
    chain = Chain(device, [(0, 1), (7, 2), (7, 3)])
    chain.launch(0, 3)
    deadline = time.monotonic() + 20
    while chain.flags[GPU_DONE] < 1 and time.monotonic() < deadline:
        time.sleep(1e-3)
    assert np.all(chain.output.array == 1)
    assert chain.flags[GPU_DONE] == 1
    chain.flags[CPU_DONE] = 7
    device.queue.finish()
    assert np.all(chain.output.array == 3)
    assert chain.flags[GPU_DONE] == 3
    assert chain.flags[ABORT] == chain.flags[GPU_GAVE_UP] == 0


def test_a_flag_that_never_comes_ends_a_chain(device: Device) -> None:
    chain = Chain(device, [(0, 1), (3, 2), (4, 3)], timeout_s=0.05)
    chain.launch(0, 3)
    device.queue.finish()
    assert chain.flags[GPU_GAVE_UP] == 3
    assert chain.flags[ABORT] == 1
    assert chain.flags[GPU_DONE] == 3, "whoever waits is told"
    assert np.all(chain.output.array == 1), "nothing is computed of what did not come"


def test_kernels_of_several_work_items_are_not_chained() -> None:
    stepped = add_steps(NUMBERS, [LaunchSpec("numbers", (), group=(4, 1))], chains=True)
    assert stepped.own == {"numbers"} and not stepped.chained


def test_a_kernel_with_local_variables_gets_no_entry() -> None:
    launches = [LaunchSpec("numbers", ()), LaunchSpec("sharing", ())]
    for source in (NUMBERS + SHARING, SHARING + NUMBERS):
        stepped = add_steps(source, launches, chains=False)
        assert stepped.symbols == stepped.own == {"numbers"}
        assert SHARING.strip() in stepped.text
    for source in (SHARING, ""):
        stepped = add_steps(source, launches, chains=True)
        assert stepped.text.strip() == source.strip()
        assert not stepped.symbols


def test_only_groups_of_several_work_items_have_a_barrier() -> None:
    def entry(group: tuple[int, int]) -> str:
        stepped = add_steps(NUMBERS, [LaunchSpec("numbers", (), group=group)], chains=False)
        return stepped.text.partition("void numbers_step")[2]

    assert entry((1, 1)).count("BARRIER") == 0
    assert entry((4, 1)).count("BARRIER") == 2


def test_the_words_are_where_the_stitch_has_them() -> None:
    header = Path(FLAGS_SOURCE).with_name("stitch.h").read_text()
    for name in ("GPU_DONE", "CPU_DONE", "ABORT", "GPU_GAVE_UP", "GROUPS_DONE"):
        assert f"COEXEC_{name} = {globals()[name]}," in header
        assert f"#define COEXEC_{name} {globals()[name]}\n" in FLAGS_SOURCE.read_text()
    assert f"COEXEC_FLAG_WORDS = {FLAG_WORDS}\n" in header
