"""Kernels that await and report steps themselves: groups of every size, bounded waits, a counter that starts anew."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tvm_coexec.module.manifest import LaunchSpec
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.memory import SvmMemory, reach
from tvm_coexec.runtime.steps import CHAIN_ENTRY, STAMPS, add_steps
from tvm_coexec.runtime.stitch import FLAG_WORDS
from tvm_coexec.runtime.sync import FLAGS_SOURCE, SyncKernels, build_newest

GPU_DONE, CPU_DONE, ABORT, GPU_GAVE_UP, GROUPS_DONE = 0, 32, 64, 96, 128
NUMBERS = """
__kernel void numbers_kernel(__global float* restrict p0_output_ptr, int begin, int count);
__kernel void numbers_kernel(__global float* restrict p0_output_ptr, int begin, int count) {
  int row = get_group_id(0) * get_local_size(0) + get_local_id(0);
  int column = get_group_id(1) * get_local_size(1) + get_local_id(1);
  if (row < begin || row >= begin + count) return;
  p0_output_ptr[row * COLUMNS + column] += 1.0f;
}
"""
DOUBLES = """
__kernel void doubles_kernel(__global float* restrict p0_input_ptr,
                             __global float *p1_output_ptr, int begin, int count) {
  int row = get_group_id(0);
  if (row >= begin && row < begin + count)
    p1_output_ptr[row * COLUMNS + get_group_id(1)] = 2 * p0_input_ptr[row * COLUMNS + get_group_id(1)];
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
        text = f"#define COLUMNS {sizes[1]}\n{source.text}"
        self.kernel = cl.Kernel(build_newest(device, text), "numbers_step")
        self.launch(0, 0)  # some drivers compile now
        device.queue.finish()
        self.output.array[:] = 0

    def launch(self, awaited: int, done: int) -> None:
        import pyopencl as cl

        arguments = self.sync.step_arguments(awaited, done)
        self.kernel.set_args(self.output.argument, np.int32(0), np.int32(self.sizes[0]), *arguments)
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
    time.sleep(0.05)  # the kernel is at work by now, and would have written
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
    """Launches rows of a table of steps. Of ``numbers`` all but the first and the last row are 1 more after each step
    of its kernel; ``doubles`` are these numbers twice once a step was of the other kernel."""

    rows, columns = 40, 3

    def __init__(self, device: Device, steps: Sequence[tuple[str, int, int]], timeout_s: float = 30.0) -> None:
        import pyopencl as cl

        if device.mechanism != "svm":
            pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
        memory = SvmMemory(device)
        self.device, self.sync = device, SyncKernels(device, memory, timeout_s)
        self.flags = self.sync.flags.array
        self.blocks = [memory.allocate(self.rows * self.columns) for _ in range(2)]
        self.numbers, self.doubles = (block.array.reshape(self.rows, self.columns) for block in self.blocks)
        launches = [LaunchSpec(symbol, ()) for symbol in ("sharing", "numbers", "doubles")]
        source = add_steps(SHARING + NUMBERS + DOUBLES, launches, chains=True)
        assert source.chained == ("numbers", "doubles") and not source.own
        self.table = memory.allocate(len(steps) * source.row_words, "uint64")
        addresses = [block.address for block in self.blocks]
        arguments = {"numbers": [addresses[0], 1, self.rows - 2], "doubles": [*addresses, 0, self.rows]}
        self.table.array[:] = [
            word
            for symbol, *flags in steps
            for word in source.row(symbol, (flags[0], flags[1]), (self.rows, self.columns), arguments[symbol])
        ]
        text = f"#define COLUMNS {self.columns}\n{source.text}"
        self.kernel = cl.Kernel(build_newest(device, text), CHAIN_ENTRY)
        self.launch(0, 0)  # some drivers compile now
        device.queue.finish()

    def launch(self, first: int, last: int) -> None:
        import pyopencl as cl

        numbers = np.int32(first), np.int32(last), self.sync.flags.argument, np.uint64(self.sync.limit)
        self.kernel.set_args(self.table.argument, *numbers)
        reach(self.kernel, self.blocks)
        cl.enqueue_nd_range_kernel(self.device.queue, self.kernel, (1, 1), (1, 1))
        self.device.queue.flush()

    def has(self, number: float, double: float) -> bool:
        """Whether this is what the buffers hold, and nothing in the rows that no step computes."""
        ends = np.all(self.numbers[[0, -1]] == 0) and np.all(self.doubles[[0, -1]] == 0)
        return bool(ends and np.all(self.numbers[1:-1] == number) and np.all(self.doubles[1:-1] == double))


def test_a_chain_computes_its_rows_and_no_others(device: Device) -> None:
    chain = Chain(device, [("numbers", 0, 1), ("doubles", 0, 0), ("numbers", 0, 3), ("numbers", 0, 4)])
    for first, last, done, number, double in ((0, 1, 1, 1, 0), (1, 2, 1, 1, 2), (1, 4, 4, 3, 2)):
        chain.launch(first, last)
        device.queue.finish()
        assert chain.flags[GPU_DONE] == done
        assert chain.has(number, double)


def test_a_chain_awaits_a_flag_between_its_rows(device: Device) -> None:
    chain = Chain(device, [("numbers", 0, 1), ("doubles", 7, 2), ("numbers", 7, 3)])
    chain.launch(0, 3)
    deadline = time.monotonic() + 20
    while chain.flags[GPU_DONE] < 1 and time.monotonic() < deadline:
        time.sleep(1e-3)
    assert chain.has(1, 0)
    assert chain.flags[GPU_DONE] == 1
    chain.flags[CPU_DONE] = 7
    device.queue.finish()
    assert chain.has(2, 2)
    assert chain.flags[GPU_DONE] == 3
    assert chain.flags[ABORT] == chain.flags[GPU_GAVE_UP] == 0
    ticks = chain.table.array.reshape(3, -1)[:, STAMPS].ravel()
    assert ticks[0] > 0 and np.all(np.diff(ticks.astype(np.int64)) >= 0), "steps begin and end one after the other"


def test_a_flag_that_never_comes_ends_a_chain(device: Device) -> None:
    chain = Chain(device, [("numbers", 0, 1), ("doubles", 3, 2), ("numbers", 4, 3)], timeout_s=0.05)
    chain.launch(0, 3)
    device.queue.finish()
    assert chain.flags[GPU_GAVE_UP] == 3
    assert chain.flags[ABORT] == 1
    assert chain.flags[GPU_DONE] == 3, "whoever waits is told"
    assert chain.has(1, 0), "nothing is computed of what did not come"


def test_a_kernel_that_asks_for_the_grid_stays_as_it_is() -> None:
    for asked in ("get_global_id(0)", "get_num_groups(1)", "get_group_id(2)"):
        source = NUMBERS.replace("get_group_id(0)", asked)
        stepped = add_steps(source, [LaunchSpec("numbers", ())], chains=True)
        assert stepped.text.strip() == source.strip()
        assert not stepped.symbols


def test_a_symbol_may_begin_with_another() -> None:
    more = NUMBERS.replace("numbers_kernel", "numbers_kernel_more_kernel")
    for source in (more + NUMBERS, NUMBERS + more):
        stepped = add_steps(source, [LaunchSpec("numbers", ()), LaunchSpec("numbers_kernel_more", ())], chains=True)
        assert set(stepped.chained) == {"numbers", "numbers_kernel_more"}
        assert stepped.text.count("p0_output_ptr[row * COLUMNS + column]") == 2
        assert "__kernel void numbers" not in stepped.text


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
