"""How the GPU's kernels are launched, and what becomes of waits that are cut or never end."""

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from small_modules import chain, expected, with_cut_waits

from tvm_coexec.compiler import packaging
from tvm_coexec.compiler.entry_points import SteppedSource, add_steps
from tvm_coexec.errors import SyncTimeoutError
from tvm_coexec.module.manifest import LaunchSpec
from tvm_coexec.module.package import Package
from tvm_coexec.runtime import loaded
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.module import Module
from tvm_coexec.verification.reference import relative_error


def launch_together(monkeypatch: pytest.MonkeyPatch, together: bool) -> None:
    """Launch kernels together, as on a CPU device of one compute unit, or each by itself."""
    monkeypatch.setattr(packaging, "chains_kernels", lambda device: together)


def test_chained_kernels_say_when_they_ran(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.mechanism != "svm":
        pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
    launch_together(monkeypatch, True)
    events = Module(chain(device, 3, 5, 64)[0], device).profile()
    gpu = [event for event in events if event.side == "gpu"]
    assert [(event.kind, event.step) for event in gpu] == [
        ("kernel", "layer0"),
        ("wait", "layer0"),
        ("kernel", "layer1"),
        ("wait", "layer1"),
        ("kernel", "layer2"),
    ]
    assert all(before.end_us <= after.start_us for before, after in pairwise(gpu))
    cpu = {event.step: event for event in events if (event.side, event.kind) == ("cpu", "call")}
    for wait in (event for event in gpu if event.kind == "wait"):
        slack_us = 5.0  # of the processor's counter against the clock
        assert wait.end_us >= cpu[wait.step].end_us - slack_us, "a wait ends when what it awaits is there"


@pytest.fixture(params=["in one launch", "one by one"])
def chains(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether kernels are launched together, as on a CPU device of one compute unit, or each by itself."""
    together: bool = request.param == "in one launch"
    launch_together(monkeypatch, together)
    return together


FAULT = 77777.0
"""What a faulty kernel looks for at the beginning of its first argument."""


def faulty(built: Package, sound: str, fault: str, *, chains: bool) -> Package:
    """The module with something else in the place of what its entries do, wherever they read a ``FAULT``."""

    def replaced(entry: re.Match[str]) -> str:
        first = "(__global float*)row[7]" if chains else re.search(r"(\w+)[,)]", entry[0])[1]  # type: ignore[index]
        assert entry[0].count(sound) == 1
        return entry[0].replace(sound, f"if (*({first}) == {FAULT}f) {{ {fault} }} else {{ {sound} }}")

    name = "coexec_chain" if chains else r"\w+_step"
    source, count = re.subn(rf"void {name}\([^)]*uint limit\) \{{.*?\n\}}", replaced, built.opencl_source, flags=re.S)
    assert count
    return replace(built, opencl_source=source)


def test_a_step_that_is_never_reported_is_the_cpus_wait_and_the_next_run_works(device: Device, chains: bool) -> None:
    if device.mechanism != "svm":
        pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
    built, nodes = chain(device, 1, 5, 64)
    module = Module(faulty(built, "if (done) coexec_report(flags, done);", "", chains=chains), device, timeout_s=0.3)
    x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    with pytest.raises(SyncTimeoutError, match=r"layer 'layer0': the CPU waited 0.3 s for the GPU half"):
        module(np.full_like(x, FAULT))
    assert relative_error(module(x), expected(nodes, x)) < 1e-5


@pytest.mark.parametrize("compute_units", [1, 2])
def test_kernels_are_chained_on_a_cpu_device_of_one_compute_unit(
    device: Device, compute_units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "info", replace(device.info, compute_units=compute_units))
    steps = chain(device, 2, 5, 64)[0].manifest.steps
    entries = {launch.entry for step in steps if step.gpu for launch in step.gpu.launches}
    assert entries == {"chained" if compute_units == 1 else "step"}


def test_a_kernel_that_hangs_when_a_module_is_loaded(device_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launch_together(monkeypatch, False)
    device = open_device(device_name)
    built, _ = chain(device, 2, 5, 64)
    earlier = Module(built, device)
    monkeypatch.setattr(loaded, "_FIRST_LAUNCH_S", 0.2)
    symbol = built.manifest.steps[0].gpu.launches[0].symbol
    definition = re.compile(rf"{symbol}_step\([^)]*\)\s*\{{")
    slow, count = definition.subn(r"\g<0>\nfor (volatile long i = 0; i < 1000000000; ++i);", built.opencl_source)
    assert count
    hangs = rf"the kernel {symbol}\w* is neither .* within 0.2 s: restart"
    with pytest.raises(SyncTimeoutError, match=hangs):
        Module(replace(built, opencl_source=slow), device)
    for launch in (lambda: earlier(np.zeros((5, 64), np.float32)), lambda: Module(built, device)):
        with pytest.raises(SyncTimeoutError, match=hangs):
            launch()
    device.queue.finish()  # it only seems to hang, so that later tests have the device


def test_every_split_is_exact_however_kernels_are_launched(device: Device, chains: bool) -> None:
    built, nodes = chain(device, 4, 5, 96)
    module = Module(built, device)
    x = np.random.default_rng(0).standard_normal((5, 96), np.float32)
    for units in range(4):
        module.set_splits({step.name: units for step in built.manifest.steps})
        for memory in module.outputs.values():
            memory[:] = np.nan
        assert relative_error(module(x), expected(nodes, x)) < 1e-5
        names = [event.step for event in module.profile() if event.kind == "kernel"]
        assert names == ([f"layer{i}" for i in range(4)] if units < 3 else [])


def test_layers_that_cannot_step_themselves_have_flag_kernels(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def add_local_variable(source: str, launches: Iterable[LaunchSpec], *, chains: bool) -> SteppedSource:
        place = re.compile(r"_kernel\([^)]*\)\s*\{").search(source).end()  # type: ignore[union-attr]
        return add_steps(f"{source[:place]}\n__local int own[1]; own[0] = 0;{source[place:]}", launches, chains=chains)

    monkeypatch.setattr(packaging, "add_steps", add_local_variable)
    built, nodes = chain(device, 4, 5, 64)
    entries = [launch.entry for step in built.manifest.steps if step.gpu for launch in step.gpu.launches]
    assert "kernel" in entries and len(set(entries)) == 2
    x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    module = Module(built, device)
    for units in range(3):
        module.set_splits({step.name: units for step in built.manifest.steps})
        assert relative_error(module(x), expected(nodes, x)) < 1e-5


def test_a_gpu_that_gives_up_its_wait_is_reported_and_the_next_run_works(device: Device, chains: bool) -> None:
    if device.mechanism != "svm":
        pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
    built, nodes = chain(device, 3, 5, 64)
    waits = "if (awaited) coexec_wait_for(flags, awaited, limit);"
    gives_up = "COEXEC_STORE(flags + COEXEC_GPU_GAVE_UP, 1); COEXEC_STORE(flags + COEXEC_ABORT, 1);"
    module = Module(faulty(built, waits, gives_up, chains=chains), device, timeout_s=30.0)
    x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    with pytest.raises(SyncTimeoutError, match="layer 'layer0': the GPU does not see what the CPU has signalled"):
        module(np.full_like(x, FAULT))
    assert relative_error(module(x), expected(nodes, x)) < 1e-5


def test_a_wait_of_the_gpu_that_is_cut_changes_no_result(device: Device, chains: bool) -> None:
    if device.mechanism != "svm":
        pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
    built, nodes = chain(device, 4, 48, 192)
    module = Module(with_cut_waits(built), device)
    module.set_splits({node.name: 5 for node in nodes})
    rng, enqueues = np.random.default_rng(0), []
    for timeline in (False, True):
        program = module._program(timeline=timeline)
        for _ in range(8):
            x = rng.standard_normal((48, 192), np.float32)
            module.inputs["t0"][:] = x
            program.run()
            enqueues.append(sum(span.action == "enqueue" for span in program.spans()))
            assert relative_error(module.outputs["t4"], expected(nodes, x)) < 1e-5
    assert max(enqueues) == 4, "no wait was cut: the GPU's commands were never enqueued one by one"
