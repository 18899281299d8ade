"""Kernels that await and report steps themselves: groups of every size, bounded waits, a counter that starts anew."""

import time
from collections.abc import Sequence
from ctypes import c_char
from typing import Any

import numpy as np
import pytest
from c_internals import text_of
from slow import slow_except

from tvm_coexec.compiler.entry_points import CHAIN_ENTRY, SteppedSource, add_steps
from tvm_coexec.module.manifest import LaunchSpec
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.library import SOURCE_FOLDER

STAMPS = slice(5, 7)
FLAG_WORDS, WAITED_STEPS = 160, 1024
"""Words of the flags, and of those behind them that count how long the GPU has waited for each step."""

LONG, SHORT = 10**9, 1_000
"""Bounds of waits in rounds of looks at a flag."""

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


def shared(device: Device, count: int, dtype: str) -> tuple[Any, np.ndarray]:
    """Zeroed memory of both sides, and what the CPU sees there."""
    import pyopencl as cl

    if device.mechanism != "svm":
        pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
    kinds = cl.svm_mem_flags
    flags = kinds.READ_WRITE | kinds.SVM_FINE_GRAIN_BUFFER | kinds.SVM_ATOMICS
    memory = cl.SVMAllocation(device.context, count * np.dtype(dtype).itemsize, 128, flags)
    words = np.frombuffer((c_char * memory.size).from_address(memory.svm_ptr), dtype)
    words[:] = 0
    return memory, words


def kernel_of(device: Device, source: SteppedSource, columns: int, name: str) -> Any:
    """An entry, built as the runtime builds it."""
    import pyopencl as cl

    text = f"{text_of('flag_source')}#define COLUMNS {columns}\n{source.text}"
    for standard in ("CL3.0", "CL2.0", "CL1.2"):
        try:
            return cl.Kernel(cl.Program(device.context, text).build([f"-cl-std={standard}"], cache_dir=False), name)
        except cl.RuntimeError:
            continue
    raise AssertionError(text)


class Launcher:
    """Launches the entry of ``NUMBERS`` with flags of its own."""

    def __init__(self, device: Device, sizes: tuple[int, int], group: tuple[int, int], limit: int = LONG) -> None:
        self.device, self.sizes, self.group, self.limit = device, sizes, group, limit
        self.flag_memory, self.flags = shared(device, FLAG_WORDS + WAITED_STEPS, "int32")
        self.output_memory, self.output = shared(device, sizes[0] * sizes[1], "float32")
        source = add_steps(NUMBERS, [LaunchSpec("numbers", (), group=group)], chains=False)
        self.kernel = kernel_of(device, source, sizes[1], "numbers_step")
        self.launch(0, 0)  # some drivers compile now
        device.queue.finish()
        self.output[:] = 0

    def launch(self, awaited: int, done: int) -> None:
        import pyopencl as cl

        numbers = np.int32(awaited), np.int32(done), np.uint32(self.limit)
        self.kernel.set_args(self.output_memory, np.int32(0), np.int32(self.sizes[0]), self.flag_memory, *numbers)
        cl.enqueue_nd_range_kernel(self.device.queue, self.kernel, self.sizes, self.group)
        self.device.queue.flush()


@pytest.mark.parametrize(("sizes", "group"), slow_except(GEOMETRIES, 0, 2, 4))
def test_a_step_is_reported_once_by_the_last_group(
    sizes: tuple[int, int], group: tuple[int, int], device: Device
) -> None:
    launcher = Launcher(device, sizes, group)
    for step in range(1, 6):
        launcher.launch(0, step)
        device.queue.finish()
        assert launcher.flags[GPU_DONE] == step
        assert launcher.flags[GROUPS_DONE] == 0
        assert np.all(launcher.output == step)


@pytest.mark.parametrize(("sizes", "group"), GEOMETRIES)
def test_nothing_is_computed_before_the_awaited_flag(
    sizes: tuple[int, int], group: tuple[int, int], device: Device
) -> None:
    launcher = Launcher(device, sizes, group, LONG)
    launcher.launch(7, 8)
    time.sleep(0.05)  # the kernel is at work by now, and would have written
    assert np.all(launcher.output == 0)
    assert launcher.flags[GPU_DONE] == 0
    launcher.flags[CPU_DONE] = 7
    device.queue.finish()
    assert np.all(launcher.output == 1)
    assert launcher.flags[GPU_DONE] == 8
    assert launcher.flags[ABORT] == launcher.flags[GPU_GAVE_UP] == 0


@pytest.mark.parametrize(("sizes", "group"), GEOMETRIES)
def test_a_flag_that_never_comes_ends_every_group_and_the_counter_starts_anew(
    sizes: tuple[int, int], group: tuple[int, int], device: Device
) -> None:
    launcher = Launcher(device, sizes, group, SHORT)
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

    def __init__(self, device: Device, steps: Sequence[tuple[str, int, int]], limit: int = LONG) -> None:
        self.device, self.limit = device, limit
        self.flag_memory, self.flags = shared(device, FLAG_WORDS + WAITED_STEPS, "int32")
        self.memory, arrays = zip(*(shared(device, self.rows * self.columns, "float32") for _ in range(2)), strict=True)
        self.numbers, self.doubles = (array.reshape(self.rows, self.columns) for array in arrays)
        launches = [LaunchSpec(symbol, ()) for symbol in ("sharing", "numbers", "doubles")]
        source = add_steps(SHARING + NUMBERS + DOUBLES, launches, chains=True)
        assert source.chained == ("numbers", "doubles") and not source.own
        addresses = [memory.svm_ptr for memory in self.memory]
        arguments = {"numbers": [addresses[0], 1, self.rows - 2], "doubles": [*addresses, 0, self.rows]}
        self.table_memory, table = shared(device, len(steps) * source.row_words, "uint64")
        self.table = table.reshape(len(steps), source.row_words)
        for row, (symbol, awaited, done) in zip(self.table, steps, strict=True):
            words = [source.chained.index(symbol), awaited, done, self.rows, self.columns, 0, 0, *arguments[symbol]]
            row[: len(words)] = words
        self.kernel = kernel_of(device, source, self.columns, CHAIN_ENTRY)
        self.launch(0, 0)  # some drivers compile now
        device.queue.finish()

    def launch(self, first: int, last: int) -> None:
        import pyopencl as cl

        numbers = np.int32(first), np.int32(last), self.flag_memory, np.uint32(self.limit)
        self.kernel.set_args(self.table_memory, *numbers)
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
    ticks = chain.table[:, STAMPS].ravel()
    assert ticks[0] > 0 and np.all(np.diff(ticks.astype(np.int64)) >= 0), "steps begin and end one after the other"


def test_a_flag_that_never_comes_ends_a_chain(device: Device) -> None:
    chain = Chain(device, [("numbers", 0, 1), ("doubles", 3, 2), ("numbers", 4, 3)], SHORT)
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
        assert not stepped.own and not stepped.chained


def test_a_symbol_may_begin_with_another() -> None:
    more = NUMBERS.replace("numbers_kernel", "numbers_kernel_more_kernel")
    for source in (more + NUMBERS, NUMBERS + more):
        stepped = add_steps(source, [LaunchSpec("numbers", ()), LaunchSpec("numbers_kernel_more", ())], chains=True)
        assert set(stepped.chained) == {"numbers", "numbers_kernel_more"}
        assert stepped.text.count("p0_output_ptr[row * COLUMNS + column]") == 2
        assert "_kernel(" not in stepped.text.replace("kernel_more_kernel_step(", "")


def test_kernels_of_several_work_items_are_not_chained() -> None:
    stepped = add_steps(NUMBERS, [LaunchSpec("numbers", (), group=(4, 1))], chains=True)
    assert stepped.own == {"numbers"} and not stepped.chained


def test_a_kernel_with_local_variables_gets_no_entry() -> None:
    launches = [LaunchSpec("numbers", ()), LaunchSpec("sharing", ())]
    for source in (NUMBERS + SHARING, SHARING + NUMBERS):
        stepped = add_steps(source, launches, chains=False)
        assert stepped.own == {"numbers"} and not stepped.chained
        assert SHARING.strip() in stepped.text
    for source in (SHARING, ""):
        stepped = add_steps(source, launches, chains=True)
        assert stepped.text.strip() == source.strip()
        assert not stepped.own and not stepped.chained


def test_only_groups_of_several_work_items_have_a_barrier() -> None:
    def entry(group: tuple[int, int]) -> str:
        stepped = add_steps(NUMBERS, [LaunchSpec("numbers", (), group=group)], chains=False)
        return stepped.text.partition("void numbers_step")[2]

    assert entry((1, 1)).count("BARRIER") == 0
    assert entry((4, 1)).count("BARRIER") == 2


def test_the_words_are_where_the_library_has_them() -> None:
    header = (SOURCE_FOLDER / "flags.h").read_text()
    for name in ("GPU_DONE", "CPU_DONE", "ABORT", "GPU_GAVE_UP", "GROUPS_DONE"):
        assert f"FLAG_{name} = {globals()[name]}," in header
        assert f"#define COEXEC_{name} {globals()[name]}\n" in text_of("flag_source")
    assert f"FLAG_WORDS = {FLAG_WORDS}," in header and f"WAITED_STEPS = {WAITED_STEPS}," in header


@pytest.mark.parametrize("chains", [False, True])
def test_without_flags_an_entry_is_a_plain_kernel(device: Device, chains: bool) -> None:
    import pyopencl as cl

    rows, columns = 40, 3
    source = add_steps(NUMBERS, [LaunchSpec("numbers", ())], chains=chains)
    text = f"#define COLUMNS {columns}\n{source.text}"
    kernel = cl.Kernel(cl.Program(device.context, text).build(["-DCOEXEC_EVENTS"], cache_dir=False), "numbers_step")
    output = np.zeros((rows, columns), np.float32)
    flags = cl.mem_flags
    buffer = cl.Buffer(device.context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=output)
    kernel(device.queue, output.shape, (1, 1), buffer, np.int32(2), np.int32(5))
    cl.enqueue_copy(device.queue, output, buffer)
    assert np.all(output[2:7] == 1) and output.sum() == 5 * columns
