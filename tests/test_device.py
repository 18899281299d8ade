"""An open device: who works for it, and where."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyopencl as cl
import pytest

from tvm_coexec.bench import workers
from tvm_coexec.bench.workers import busy_runner
from tvm_coexec.cli.device_checks import check_arithmetic, flag_round_trip_us
from tvm_coexec.errors import DeviceError
from tvm_coexec.machine import cores
from tvm_coexec.opencl import probe
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.opencl.discovery import DeviceInfo, Found, list_devices
from tvm_coexec.runtime import device as device_module
from tvm_coexec.runtime.device import Device, open_chosen, open_device

USABLE = cores.usable_cores()
needs_two_cores = pytest.mark.skipif(len(USABLE) < 2, reason="needs two cores")


def info(**changes: object) -> DeviceInfo:
    fields: dict[str, object] = {
        "name": "mali: G78",
        "platform": "ARM Platform",
        "alias": "mali",
        "vendor": "ARM",
        "driver_version": "1",
        "opencl_version": "OpenCL 3.0",
        "device_type": "gpu",
        "compute_units": 20,
        "max_group_size": 512,
        "global_memory_bytes": 1 << 30,
        "local_memory_bytes": 1 << 15,
        "local_memory_type": 2,
        "image_rows": 0,
        "svm": ("coarse",),
        "command_buffers": False,
        "unified_memory": True,
        "mechanism": "event",
        "mechanism_reason": "only coarse-grained shared virtual memory",
    }
    return DeviceInfo(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def only_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_coexec.opencl.choice.discover", lambda worker_count: Found([(info(), None)], []))


@needs_two_cores
def test_the_opencl_workers_have_cores_of_their_own(device: Device) -> None:
    assert device.workers
    assert not set(device.cpu_cores) & set(device.gpu_cores)
    for worker in device.workers:
        assert os.sched_getaffinity(worker) == set(device.gpu_cores)


def test_opening_does_not_move_the_calling_thread(device_name: str) -> None:
    before = os.sched_getaffinity(0)
    open_device(device_name)
    assert os.sched_getaffinity(0) == before


def test_a_kernel_that_is_polled_runs_on_the_workers_alone(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep, looks = time.sleep, 0

    def counted_sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        sleep(seconds)

    monkeypatch.setattr(workers.time, "sleep", counted_sleep)
    run = busy_runner(device.context, device.queue, len(device.workers))
    run()
    before, looks = cores._cpu_times(), 0
    theirs, ours, used = 0, 0, {}
    for _ in range(500):  # until what else happens once in a process no longer counts
        began_ns = time.thread_time_ns()
        run()
        ours += time.thread_time_ns() - began_ns
        used = {thread: after - before.get(thread, 0) for thread, after in cores._cpu_times().items()}
        theirs = sum(used[worker] for worker in device.workers)
        if theirs >= 100e6:
            break
    assert theirs >= 100e6
    began_ns = time.thread_time_ns()
    for _ in range(100):
        sleep(workers._POLL_S)
    look_ns = (time.thread_time_ns() - began_ns) / 100
    # this thread has only slept, and asked, the more often the less others leave of the workers' core
    assert ours < theirs / 3 + 5 * looks * look_ns
    others = used.keys() - set(device.workers) - {os.getpid()}
    assert sum(used[thread] for thread in others) < theirs / 10


def test_opening_again_gives_the_same(device: Device, device_name: str) -> None:
    again = open_device(device_name)
    assert again.facts() == device.facts()
    assert again.workers == device.workers
    check_arithmetic(again.context, again.queue)
    check_arithmetic(device.context, device.queue)


def test_the_facts_are_json_and_say_what_plays_the_gpu(device: Device) -> None:
    facts = json.loads(json.dumps(device.facts()))
    assert facts == device.facts()
    assert device.is_bench
    assert "a CPU OpenCL device on core" in facts["label"]
    assert facts["compute_units"] == len(device.gpu_cores) == len(facts["gpu_cores"])
    assert facts["versions"]["pyopencl"] == cl.VERSION_TEXT
    assert facts["cpu_model"] and facts["cpu_features"] and facts["machine"]


def test_flags_make_the_round_trip(device: Device) -> None:
    if device.mechanism != "svm":
        pytest.skip("needs fine-grained SVM with atomics")
    assert flag_round_trip_us(device.context, device.queue, rounds=50) > 0


def test_events_can_be_asked_for(device_name: str) -> None:
    opened = open_device(device_name, mechanism="event")
    assert (opened.mechanism, opened.facts()["mechanism_reason"]) == ("event", "as asked for")


def test_an_unknown_mechanism_is_refused(device_name: str) -> None:
    with pytest.raises(DeviceError, match="no mechanism 'telepathy'; choose from svm, event"):
        open_device(device_name, mechanism="telepathy")


@pytest.mark.usefixtures("only_a_gpu")
def test_svm_is_refused_where_it_is_missing() -> None:
    with pytest.raises(DeviceError, match=r"mali: G78 has only coarse-grained shared virtual memory.*use 'event'"):
        open_device(mechanism="svm")


@pytest.mark.usefixtures("only_a_gpu")
def test_a_gpu_has_no_cores_to_choose() -> None:
    with pytest.raises(DeviceError, match="--gpu-cores is for OpenCL CPU devices; mali: G78"):
        open_device(gpu_cores=USABLE[:1], cpu_cores=USABLE[-1:])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"gpu_cores": (4097,)}, "--gpu-cores names core 4097; this process may use core"),
        ({"cpu_cores": (4096, 4097)}, "--cpu-cores names cores 4096, 4097"),
        ({"cpu_cores": ()}, "--cpu-cores needs at least one core"),
        ({"gpu_cores": USABLE[:1] * 2}, "each named once"),
    ],
)
def test_cores_that_cannot_be_used_are_refused(wanted: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        open_device(**wanted)  # type: ignore[arg-type]


@needs_two_cores
@pytest.mark.parametrize("both", [USABLE[:1], USABLE])
def test_both_sides_on_one_core_are_refused(both: tuple[int, ...]) -> None:
    with pytest.raises(DeviceError, match="give them different --cpu-cores and --gpu-cores"):
        open_device(cpu_cores=both, gpu_cores=both)


@needs_two_cores
def test_one_drivers_threads_cannot_be_at_two_places(device: Device, device_name: str) -> None:
    with pytest.raises(DeviceError, match=r"is open on core.*close\(\) that device first"):
        open_device(device_name, gpu_cores=device.cpu_cores[:1], cpu_cores=device.gpu_cores[:1])


@pytest.mark.usefixtures("only_a_gpu")
def test_a_gpu_leaves_all_cores_to_the_cpus_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_make", lambda info, handle, cpu_cores: cpu_cores)
    assert open_device() == open_device(cpu_cores=USABLE) == USABLE


def open_elsewhere(arguments: str, before: str = "", **environment: str) -> dict[str, object]:
    """What a device opened in a fresh process is like."""
    code = f"""
import json, os
{before}
from tvm_coexec.runtime.device import open_device
device = open_device({arguments})
where = [sorted(os.sched_getaffinity(worker)) for worker in device.workers]
print(json.dumps({{**device.facts(), "where": where, "cores": sorted(os.sched_getaffinity(0))}}))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return dict(json.loads(result.stdout))


@needs_two_cores
def test_the_sides_can_be_swapped(device_name: str) -> None:
    gpu, cpu = USABLE[1], USABLE[0]
    opened = open_elsewhere(f"{device_name!r}, gpu_cores=[{gpu}], cpu_cores=[{cpu}]")
    assert (opened["where"], opened["cpu_cores"], opened["gpu_cores"]) == ([[gpu]], [cpu], [gpu])


@needs_two_cores
def test_the_side_that_is_left_open_gets_the_other_cores(device_name: str) -> None:
    opened = open_elsewhere(f"{device_name!r}, gpu_cores=[{USABLE[-1]}]")
    assert opened["cpu_cores"] == list(USABLE[:-1])


def test_a_lone_core_is_shared_and_the_facts_say_so(device_name: str) -> None:
    opened = open_elsewhere(repr(device_name), before=f"os.sched_setaffinity(0, [{USABLE[0]}])")
    assert opened["cpu_cores"] == opened["gpu_cores"] == opened["cores"] == [USABLE[0]]
    assert "share it" in str(opened["notes"])


@needs_two_cores
def test_threads_beyond_the_cores_are_moved_too_and_noted() -> None:
    if "pocl" not in {info.alias for info in list_devices()}:
        pytest.skip("needs PoCL, whose threads are counted by a variable")
    opened = open_elsewhere("'pocl'", POCL_MAX_PTHREAD_COUNT="2")
    assert opened["where"] == [opened["gpu_cores"]] * 2
    assert "2 threads, which share 1 core" in str(opened["notes"])


def test_listing_before_opening_changes_nothing(device_name: str) -> None:
    listing = "from tvm_coexec.opencl.discovery import list_devices; list_devices()"
    opened = open_elsewhere(repr(device_name), before=listing)
    assert opened["notes"] == open_elsewhere(repr(device_name))["notes"]
    assert opened["where"] == [opened["gpu_cores"]] * len(opened["gpu_cores"])  # type: ignore[arg-type]


def test_default_cores_divide_the_usable_ones() -> None:
    gpu, cpu = cores.default_cores()
    if len(USABLE) > 1:
        assert (*gpu, *cpu) == USABLE
        assert 0 <= len(cpu) - len(gpu) <= 1


def test_threads_that_do_not_work_are_not_taken_for_workers() -> None:
    assert cores.find_workers(lambda: time.sleep(0.001), 1) == ()


def test_a_worker_that_looks_for_more_work_for_a_while_is_still_found(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, spinner = 7, 8
    states = itertools.count()
    moments = itertools.count()

    def cpu_times() -> dict[int, int]:
        rounds, moment = divmod(next(states), 3)  # before, idle, after
        return {
            worker: 13_000_000 * rounds + (0, 850_000, 13_000_000)[moment],
            spinner: 15_000_000 * rounds + (0, 3_000_000, 15_000_000)[moment],
        }

    def monotonic_ns() -> int:
        rounds, moment = divmod(next(moments), 3)  # the work takes four times as long as the rest before it
        return 15_000_000 * rounds + (0, 3_000_000, 15_000_000)[moment]

    monkeypatch.setattr(cores, "_cpu_times", cpu_times)
    monkeypatch.setattr(cores.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(cores.time, "monotonic_ns", monotonic_ns)
    assert cores.find_workers(lambda: None, 1) == (worker,)


def test_a_thread_that_worked_and_ended_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    passing, worker = 7, 8
    moments = itertools.count()

    def cpu_times() -> dict[int, int]:
        rounds, moment = divmod(next(moments), 3)  # before, idle, after
        times = {worker: 9_000_000 * (rounds + (moment == 2))}
        return times | ({passing: 9_000_000 * (moment == 2)} if rounds == 0 else {})

    monkeypatch.setattr(cores, "_cpu_times", cpu_times)
    assert cores.find_workers(lambda: None, 2) == (worker,)


def test_threads_that_ended_are_not_moved() -> None:
    never_used = 2**22 + 1  # Linux numbers threads up to 2^22
    assert cores.pin([never_used, os.getpid()], os.sched_getaffinity(0)) == (os.getpid(),)


def test_a_kernel_that_cannot_be_built_is_an_error_with_the_drivers_words(device: Device) -> None:
    with pytest.raises(probe.KernelError, match=r"compiles no kernel.*reinstall or update it"):
        probe.build(device.context, "__kernel void broken( {")


@pytest.mark.usefixtures("only_a_gpu")
def test_a_device_that_gives_no_context_is_an_error_with_the_drivers_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(devices: object) -> None:
        raise cl.RuntimeError("clCreateContext failed: DEVICE_NOT_AVAILABLE")

    monkeypatch.setattr(cl, "Context", refuse)
    with pytest.raises(DeviceError, match=r"mali: G78 cannot be opened \(.*DEVICE_NOT_AVAILABLE\); end other programs"):
        open_device()


def test_a_device_is_opened_again_by_its_facts(device_name: str) -> None:
    facts = open_device(device_name, mechanism="event").facts()
    choice = DeviceChoice.again(facts)
    assert DeviceChoice.from_json(json.loads(json.dumps(dataclasses.asdict(choice)))) == choice
    assert open_chosen(choice).facts() == facts


def test_a_choice_that_is_left_open_stays_open() -> None:
    assert DeviceChoice.from_json(json.loads(json.dumps(dataclasses.asdict(DeviceChoice())))) == DeviceChoice()


def _open_with_pocl_cache(cache: Path) -> subprocess.CompletedProcess[str]:
    script = "from tvm_coexec.runtime.device import open_device\nopen_device('pocl')"
    environment = os.environ | {"POCL_CACHE_DIR": str(cache)}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("device_name", ["pocl"], indirect=True)
def test_a_damaged_cache_of_the_driver_is_named(device_name: str, tmp_path: Path) -> None:
    """PoCL trusts its own cache: what it has lost there is told; a file that is damaged within kills the process."""
    assert _open_with_pocl_cache(tmp_path).returncode == 0
    programs = list(tmp_path.rglob("program.bc"))
    assert programs
    for program in programs:
        program.write_bytes(b"")
    last = _open_with_pocl_cache(tmp_path).stderr.splitlines()[-1]
    assert "KernelError: the driver of " in last and f"delete its cache of kernels in {tmp_path}, or" in last
