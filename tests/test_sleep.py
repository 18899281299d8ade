"""How long the CPU sleeps for the GPU while others want its core, on a clock that passes as these tests say."""

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from c_internals import STRICT

from tvm_coexec.compiler.toolchain import c_compiler
from tvm_coexec.runtime.library import SOURCE_FOLDER

HARNESS = Path(__file__).with_name("stub") / "sleep.c"
US, S = 1_000, 1_000_000_000
AS_LEFT = -1


class Waits:
    """A program of one wait."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.begin.argtypes = [ctypes.c_int64, ctypes.c_int32]
        for name in ("length_ns", "displaced_ns", "slack_ns"):
            getattr(library, name).restype = ctypes.c_int64

    def run(self, gpu_us: float, *, late_us: float = 0, crowded_runs: int = 1) -> int:
        self.set("gpu_takes_ns", gpu_us)
        self.set("wakes_late_ns", late_us)
        return int(self.library.run(crowded_runs))

    def set(self, name: str, us: float) -> None:
        ctypes.c_int64.in_dll(self.library, name).value = int(us * US)

    @property
    def length_us(self) -> float:
        return float(self.library.length_ns() / US)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    built = tmp_path_factory.mktemp("sleep") / "sleep.so"
    sources = [HARNESS, *(path for path in sorted(SOURCE_FOLDER.glob("*.c")) if path.name not in ("run.c", "waits.c"))]
    command = [c_compiler(), *STRICT, f"-I{SOURCE_FOLDER}", *map(str, sources), "-o", str(built), "-ldl", "-lm"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(built))


@pytest.fixture
def waits(library: ctypes.CDLL) -> Iterator[Waits]:
    library.begin(5 * S, False)
    ctypes.c_int64.in_dll(library, "nap_ends_after_ns").value = 2**62
    yield Waits(library)


@pytest.mark.slow
def test_a_first_run_in_which_a_driver_compiles_is_not_slept_for_again(waits: Waits) -> None:
    lengths_us = []
    for gpu_us in (50_000, 200, 200, 200):
        assert not waits.run(gpu_us)
        lengths_us.append(waits.length_us)
    assert lengths_us[0] >= 50_000 and max(lengths_us[1:]) < 300


def test_naps_follow_a_gpu_that_becomes_faster(waits: Waits) -> None:
    for gpu_us in (8000, 8000, *[1000] * 30):
        assert not waits.run(gpu_us)
    assert waits.length_us < 1300


@pytest.mark.parametrize("late_us", [10, 100, 1000])
def test_naps_that_end_late_do_not_grow(late_us: float, waits: Waits) -> None:
    lengths_us = []
    for _ in range(1000):
        assert not waits.run(2000, late_us=late_us)
        lengths_us.append(waits.length_us)
    assert max(lengths_us[1:]) < 2000 + 2 * late_us + 100


def test_a_core_that_wakes_up_slowly_is_not_taken_for_one_that_others_want(waits: Waits) -> None:
    for late_us, is_crowded in ((300, False), (3000, True)):
        for crowded_runs in (2, AS_LEFT):
            assert not waits.run(2000, late_us=late_us, crowded_runs=crowded_runs)
        assert (waits.library.crowded_runs() > 0) == is_crowded


@pytest.mark.parametrize("is_preempted", [False, True])
def test_a_driver_that_sleeps_is_not_taken_for_others(waits: Waits, is_preempted: bool) -> None:
    waits.set("stops_after_ns", 10)
    waits.set("stopped_ns", 500)
    ctypes.c_int64.in_dll(waits.library, "is_preempted").value = is_preempted
    assert not waits.run(2000, crowded_runs=0)
    assert not waits.run(2000, crowded_runs=AS_LEFT)
    assert (waits.library.crowded_runs() > 0) == is_preempted
    waits.set("stopped_ns", 0)


def test_sleeping_does_not_add_to_the_bound_of_a_wait(waits: Waits) -> None:
    waits.library.begin(50_000 * US, False)
    for _ in range(2):
        assert not waits.run(40_000)
    assert waits.run(10_000_000)
    assert 50_000 <= waits.length_us < 60_000
    assert not waits.run(40_000) and waits.length_us < 41_000  # what the failed wait took says nothing of the GPU


@pytest.mark.parametrize("crowded_runs", [0, 1])
def test_what_is_stopped_for_longer_than_a_wait_goes_on(waits: Waits, crowded_runs: int) -> None:
    """As by Ctrl-Z; a GPU that does not come is given up as long after as without."""
    waits.library.begin(50_000 * US, False)
    waits.set("stops_after_ns", 30_000)
    waits.set("stopped_ns", 60_000_000)
    assert not waits.run(40_000, crowded_runs=crowded_runs)
    assert 60_040_000 <= waits.length_us < 60_050_000
    assert waits.run(10_000_000, crowded_runs=crowded_runs)
    assert 60_050_000 <= waits.length_us < 60_070_000
    waits.set("stopped_ns", 0)


@pytest.mark.parametrize("yields", [False, True])
def test_a_wait_ends_where_others_keep_the_core_for_long(yields: bool, waits: Waits) -> None:
    """Their turns are no stop of the process: a GPU that never comes is given up in time."""
    waits.library.begin(1 * S, yields)
    waits.set("others_take_ns", 100_000)
    assert waits.run(1e9, crowded_runs=0)
    assert 1_000_000 <= waits.length_us < 1_300_000
    waits.set("others_take_ns", 0)


def test_a_nap_that_a_signal_ends_counts_for_as_long_as_it_was(waits: Waits) -> None:
    waits.set("nap_ends_after_ns", 20)
    for _ in range(3):
        assert not waits.run(2000)
        assert waits.library.displaced_ns() >= 0


def test_the_threads_timer_slack_is_set_back(waits: Waits) -> None:
    before_ns = waits.library.slack_ns()
    for _ in range(2):
        assert not waits.run(2000)
    assert waits.run(10_000_000)  # this one fails
    assert ctypes.c_int64.in_dll(waits.library, "slack_while_napping").value == 1 != before_ns
    assert waits.library.slack_ns() == before_ns
