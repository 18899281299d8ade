"""Kernels that await and report steps themselves: groups of every size, bounded waits, a counter that starts anew."""

from pathlib import Path

import numpy as np
import pytest

from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.manifest import LaunchSpec
from tvm_coexec.runtime.memory import SvmMemory
from tvm_coexec.runtime.steps import add_steps
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
  p0_output_ptr[get_group_id(0)] = shared_sum[get_local_id(0)];
}
"""
GEOMETRIES = [
    pytest.param(sizes, group, in_turn, id=f"{sizes}-{group}-{'in turn' if in_turn else 'at once'}")
    for sizes, group in [((1, 1), (1, 1)), ((40, 3), (1, 1)), ((8, 6), (4, 2)), ((64, 1), (16, 1)), ((4, 4), (4, 4))]
    for in_turn in (False, True)
]


class Launcher:
    """Launches the entry of ``NUMBERS`` with flags of its own."""

    def __init__(
        self,
        device: Device,
        sizes: tuple[int, int],
        group: tuple[int, int],
        in_turn: bool,
        timeout_s: float = 5.0,
    ) -> None:
        import pyopencl as cl

        if device.mechanism != "svm":
            pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
        memory = SvmMemory(device)
        self.device, self.group, self.columns = device, group, sizes[1]
        self.grid = (sizes[0] // group[0], sizes[1] // group[1])
        self.sync = SyncKernels(device, memory, timeout_s)
        self.flags = self.sync.flags.array
        self.output = memory.allocate(sizes[0] * sizes[1])
        source = add_steps(NUMBERS, [LaunchSpec("numbers", (), group=group)], in_turn=in_turn)
        launched = source.launched("numbers", self.grid)
        self.sizes = (launched[0] * group[0], launched[1] * group[1])
        self.kernel = cl.Kernel(build_newest(device, source.text), "numbers_step")
        self.launch(0, 0)  # some drivers compile now
        device.queue.finish()
        self.output.array[:] = 0

    def launch(self, awaited: int, done: int) -> None:
        import pyopencl as cl

        arguments = [*self.sync.step_arguments(awaited, done), *map(np.int32, self.grid)]
        self.kernel.set_args(self.output.argument, np.int32(0), np.int32(self.columns), *arguments)
        cl.enqueue_nd_range_kernel(self.device.queue, self.kernel, self.sizes, self.group)
        self.device.queue.flush()


@pytest.mark.parametrize(("sizes", "group", "in_turn"), GEOMETRIES)
def test_a_step_is_reported_once_by_the_last_group(
    sizes: tuple[int, int], group: tuple[int, int], in_turn: bool, device: Device
) -> None:
    launcher = Launcher(device, sizes, group, in_turn)
    for step in range(1, 6):
        launcher.launch(0, step)
        device.queue.finish()
        assert launcher.flags[GPU_DONE] == step
        assert launcher.flags[GROUPS_DONE] == 0
        assert np.all(launcher.output.array == step)


@pytest.mark.parametrize(("sizes", "group", "in_turn"), GEOMETRIES)
def test_nothing_is_computed_before_the_awaited_flag(
    sizes: tuple[int, int], group: tuple[int, int], in_turn: bool, device: Device
) -> None:
    launcher = Launcher(device, sizes, group, in_turn, timeout_s=30.0)
    launcher.launch(7, 8)
    assert np.all(launcher.output.array == 0)
    assert launcher.flags[GPU_DONE] == 0
    launcher.flags[CPU_DONE] = 7
    device.queue.finish()
    assert np.all(launcher.output.array == 1)
    assert launcher.flags[GPU_DONE] == 8
    assert launcher.flags[ABORT] == launcher.flags[GPU_GAVE_UP] == 0


@pytest.mark.parametrize(("sizes", "group", "in_turn"), GEOMETRIES)
def test_a_flag_that_never_comes_ends_every_group_and_the_counter_starts_anew(
    sizes: tuple[int, int], group: tuple[int, int], in_turn: bool, device: Device
) -> None:
    launcher = Launcher(device, sizes, group, in_turn, timeout_s=0.05)
    launcher.launch(3, 4)
    device.queue.finish()
    assert launcher.flags[GPU_GAVE_UP] == 3
    assert launcher.flags[ABORT] == 1
    assert launcher.flags[GROUPS_DONE] == 0
    launcher.flags[:] = 0
    launcher.launch(0, 1)
    device.queue.finish()
    assert launcher.flags[GPU_DONE] == 1


def test_a_kernel_with_local_variables_gets_no_entry() -> None:
    launches = [LaunchSpec("numbers", ()), LaunchSpec("sharing", ())]
    for source in (NUMBERS + SHARING, SHARING + NUMBERS):
        stepped = add_steps(source, launches, in_turn=True)
        assert stepped.symbols == {"numbers"}
        assert stepped.launched("numbers", (5, 3)) == (1, 1)
        assert stepped.launched("sharing", (5, 3)) == (5, 3)
        assert SHARING.strip() in stepped.text
    for source in (SHARING, ""):
        stepped = add_steps(source, launches, in_turn=True)
        assert stepped.text.strip() == source.strip()
        assert not stepped.symbols


def test_only_groups_of_several_work_items_have_a_barrier() -> None:
    def entry(group: tuple[int, int]) -> str:
        stepped = add_steps(NUMBERS, [LaunchSpec("numbers", (), group=group)], in_turn=False)
        return stepped.text.partition("void numbers_step")[2]

    assert entry((1, 1)).count("BARRIER") == 0
    assert entry((4, 1)).count("BARRIER") == 2


def test_the_words_are_where_the_stitch_has_them() -> None:
    header = Path(FLAGS_SOURCE).with_name("stitch.h").read_text()
    for name in ("GPU_DONE", "CPU_DONE", "ABORT", "GPU_GAVE_UP", "GROUPS_DONE"):
        assert f"COEXEC_{name} = {globals()[name]}," in header
        assert f"#define COEXEC_{name} {globals()[name]}\n" in FLAGS_SOURCE.read_text()
    assert f"COEXEC_FLAG_WORDS = {FLAG_WORDS}\n" in header
