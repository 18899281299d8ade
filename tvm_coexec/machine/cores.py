"""CPU cores: which ones this process may use, how the two sides share them, and which threads run on them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tvm_coexec.errors import DeviceError

_CPU_FOLDER = Path("/sys/devices/system/cpu")
_TASKS = Path("/proc/self/task")
_BUSY_NS = 500_000
"""CPU time of a thread that has worked; one that merely woke up has used a few microseconds."""

_LISTED = 16
"""Cores of which each is named."""

_IDLE_WINDOW_S = 0.003
_IDLE_SHARE = 0.5
"""Share of its CPU time under work that a worker may use in as long a rest: Intel's look for more for 0.8 ms."""

_ROUNDS, _QUIET_ROUNDS = 60, 3
"""How often workers are looked for at most, and rounds without a new one after which all are found."""


def usable_cores() -> tuple[int, ...]:
    """One logical CPU of each physical core that this thread may run on; every logical CPU if that leaves only one."""
    allowed = sorted(os.sched_getaffinity(0))
    physical: dict[str, int] = {}
    for core in allowed:
        physical.setdefault(_siblings(core), core)
    return tuple(physical.values()) if len(physical) > 1 else tuple(allowed)


def _siblings(core: int) -> str:
    path = _CPU_FOLDER / f"cpu{core}" / "topology" / "thread_siblings_list"
    return path.read_text().strip() if path.exists() else str(core)


def default_cores() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cores of an OpenCL CPU device that plays the GPU, and those of the CPU's side: half each, a lone core shared."""
    cores = usable_cores()
    half = len(cores) // 2
    return (cores[:half], cores[half:]) if half else (cores, cores)


def check_cores(chosen: Iterable[int], option: str) -> tuple[int, ...]:
    """The cores that a caller has chosen, once each.

    Raises
    ------
    DeviceError
        There is none, one is named twice, or one is not this process's to use.
    """
    cores = tuple(chosen)
    allowed = sorted(os.sched_getaffinity(0))
    if not cores or len(set(cores)) != len(cores):
        raise DeviceError(f"{option} needs at least one core, each named once; this process may use {listed(allowed)}")
    foreign = [core for core in cores if core not in allowed]
    if foreign:
        raise DeviceError(f"{option} names {listed(foreign)}; this process may use {listed(allowed)}")
    return cores


def listed(cores: Iterable[int]) -> str:
    """Write ``core 0`` or ``cores 0, 2``, and leave out those of many after the first."""
    numbers = [str(core) for core in cores]
    if len(numbers) > _LISTED:
        numbers[_LISTED:] = [f"... {numbers[-1]}"]
    return f"{'cores' if len(numbers) > 1 else 'core'} {', '.join(numbers)}"


def pin(threads: Iterable[int], cores: Iterable[int]) -> tuple[int, ...]:
    """Let threads, given by their kernel ids, run on ``cores`` alone, and return those that have not ended."""
    chosen, alive = set(cores), []
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, chosen)
            alive.append(thread)
    return tuple(alive)


def find_workers(run: Callable[[], None], count: int) -> tuple[int, ...]:
    """The threads that do the work of ``run``: those that use the CPU in it and are idle without it.

    Drivers neither name their threads nor tell their ids, and some start them late, so that watching them work is
    the only way that always holds. Python's own threads are never among them.

    Parameters
    ----------
    run
        Gives every worker a few milliseconds of work and returns when that is done, without working itself.
    count
        Workers that there should be. ``run`` is repeated until so many have been seen and no other joins, since a
        driver may draw them from a larger pool.
    """
    own = {threading.get_native_id(), *(thread.native_id for thread in threading.enumerate())}
    seen: set[int] = set()
    quiet_rounds = 0
    for number in range(_ROUNDS):
        before, start_ns = _cpu_times(), time.monotonic_ns()
        time.sleep(_IDLE_WINDOW_S * (1 + number // _QUIET_ROUNDS))  # some threads come to rest late
        idle, middle_ns = _cpu_times(), time.monotonic_ns()
        run()
        after, end_ns = _cpu_times(), time.monotonic_ns()
        longer = (end_ns - middle_ns) / max(middle_ns - start_ns, 1)
        newcomers = {
            thread
            for thread in after.keys() - own - seen
            if _has_worked(after[thread] - idle.get(thread, 0), longer * (idle.get(thread, 0) - before.get(thread, 0)))
        }
        seen = (seen | newcomers) & after.keys()  # drivers also work by threads that then end
        quiet_rounds = 0 if newcomers else quiet_rounds + 1
        if len(seen) >= count and quiet_rounds == _QUIET_ROUNDS:
            break
    return tuple(sorted(seen))


def _has_worked(busy_ns: float, idle_ns: float) -> bool:
    """Whether a thread is a worker, from its CPU time under work and what it would use in as long a rest."""
    return busy_ns > _BUSY_NS and idle_ns < _IDLE_SHARE * busy_ns


def _cpu_times() -> dict[int, int]:
    """Read the nanoseconds that each thread was on a CPU so far, by thread id."""
    times = {}
    for task in _TASKS.iterdir():
        thread = int(task.name)
        try:
            times[thread] = time.clock_gettime_ns(_cpu_clock(thread))
        except OSError:  # the thread has ended meanwhile
            continue
    return times


def _cpu_clock(thread: int) -> int:
    """Linux's number of the clock that counts one thread's CPU time, as ``pthread_getcpuclockid`` would give it."""
    return (~thread << 3) | 6
