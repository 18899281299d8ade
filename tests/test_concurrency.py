"""Threads, forks, and views that outlive their module: each gets what is right, or is told what to do."""

import gc
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from small_modules import chain, expected

from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module

THREADS, RUNS = 4, 25


@pytest.mark.parametrize("shared", [True, False], ids=["one module", "a module each"])
def test_threads_get_results_of_their_own(shared: bool, device: Device) -> None:
    built, nodes = chain(device, 3, 17, 128)
    one = Module(built, device)
    modules = [one if shared else Module(built, device) for _ in range(THREADS)]
    right = [0] * THREADS

    def work(number: int) -> None:
        x = np.random.default_rng(number).standard_normal((17, 128), np.float32)
        result = expected(nodes, x)
        for _ in range(RUNS):
            right[number] += np.allclose(modules[number](x), result, rtol=1e-3, atol=1e-3)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [RUNS] * THREADS


def test_splits_may_change_while_another_thread_runs(device: Device) -> None:
    built, nodes = chain(device, 3, 5, 128)
    module = Module(built, device)
    x = np.random.default_rng(0).standard_normal((5, 128), np.float32)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for units in range(5):
                module.set_splits({"layer1": units})

    thread = threading.Thread(target=change)
    thread.start()
    results = [module(x) for _ in range(RUNS)]
    stop.set()
    thread.join()
    for result in results:
        np.testing.assert_allclose(result, expected(nodes, x), rtol=1e-3, atol=1e-3)


def test_views_keep_their_memory(device: Device) -> None:
    built, _ = chain(device, 2, 9, 64)
    module = Module(built, device)
    module.randomize_inputs()
    module.run()
    x, y = module.inputs["t0"], module.outputs["t2"]
    before = y.copy()
    del module
    gc.collect()
    others = [Module(built, device) for _ in range(3)]
    for other in others:
        other.inputs["t0"][:] = 7
    x[:] = 1e9
    np.testing.assert_array_equal(y, before)
    assert all((other.inputs["t0"] == 7).all() for other in others)


FORKED = """
import multiprocessing, sys
import numpy as np
from small_modules import chain
from tvm_coexec.errors import DeviceError
from tvm_coexec.runtime.device import open_device
from tvm_coexec.runtime.module import Module, load

device = open_device("pocl")
module = Module(chain(device, 2, 5, 64)[0], device)
module.export(sys.argv[1])
x = np.ones((5, 64), np.float32)
result = module(x)

def child(told):
    global module
    for use in (lambda: module(x), lambda: load(sys.argv[1], device=device), lambda: load(sys.argv[1])):
        try:
            use()
            told.put("no error")
        except DeviceError as error:
            told.put(str(error))
    del module

context = multiprocessing.get_context("fork")
told = context.Queue()
process = context.Process(target=child, args=(told,))
process.start()
for _ in range(3):
    print(told.get(timeout=30))
process.join(30)
assert process.exitcode == 0
assert np.array_equal(module(x), result)
"""


def test_a_forked_process_is_told_to_be_spawned(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKED, str(tmp_path / "m.coexec")]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all("before this process was forked" in line and "'spawn'" in line for line in lines)


def test_a_call_from_a_signal_s_handler_changes_no_result(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers and finalisers run in the thread that they interrupt, which has its turn already."""
    built, nodes = chain(device, 2, 5, 64)
    module = Module(built, device)
    x, other = np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)
    call, inner = module._loaded.call, []

    def handle() -> None:
        monkeypatch.setattr(module._loaded, "call", call)
        inner.append(module(other))
        monkeypatch.setattr(module._loaded, "call", call_interrupted)

    def call_interrupted(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        handle()
        results = call(arrays)
        handle()
        return results

    monkeypatch.setattr(module._loaded, "call", call_interrupted)
    assert np.allclose(module(x), expected(nodes, x), atol=1e-4)
    assert len(inner) == 2 and all(np.allclose(result, expected(nodes, other), atol=1e-4) for result in inner)


ON_ONE_CORE = """
import os, sys, warnings
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
from onnx_builder import OnnxBuilder
from dataclasses import replace
from small_modules import chain, chain_of, expected
from synthetic_device import PLANNING
import tvm_coexec
from tvm_coexec.compiler.packaging import package
from tvm_coexec.compiler.target import target_for
from tvm_coexec.profile import Profile
from tvm_coexec.runtime.device import open_device
from tvm_coexec.runtime.module import load

b = OnnxBuilder(x=(4, 64))
w = b.weights(64, 96)
device = open_device("pocl")
chain(device, 2, 5, 64)[0].write(sys.argv[1])
model = b.model(b.add("Relu", b.add("MatMul", "x", w)))
with Profile.create(sys.argv[1] + ".profile", device.facts()) as profile:
    profile.describe(planning=PLANNING)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    loaded = load(sys.argv[1], device=device, adapt=True)
    built = tvm_coexec.build(model, device=device, split=0.5, profile=profile.path)
assert len([one for one in told if "alone, on which both sides cannot run at once" in str(one.message)]) == 2, told
assert len([one for one in told if f"the profile {profile.path} is not used" in str(one.message)]) == 1, told
x = np.ones((4, 64), np.float32)
assert {layer.cpu_units - layer.layer.units for layer in built.plan.layers} == {0}
assert np.isfinite(built(x)).all() and np.isfinite(loaded(np.ones((5, 64), np.float32))).all()
print(loaded.splits)

# a module of two cores, of which each side has to compute layers: flags would be awaited for milliseconds
assert device.mechanism == "event" and "have one core" in device.info.mechanism_reason
graph, choices = chain_of(device, 4, 5, 64)
sides = [replace(one, **({"cpu": None, "cpu_units": 0} if i % 2 else {"gpu": None})) for i, one in enumerate(choices)]
sides = [one if one.gpu else replace(one, cpu_units=2) for one in sides]
facts = {**device.facts(), "mechanism": "svm"}
package(graph, sides, target_for(facts), facts).write(sys.argv[1])
mixed = load(sys.argv[1], device=device)
x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
assert set(mixed.splits.values()) == {0, 2} and np.allclose(mixed(x), expected(graph.nodes, x), atol=1e-4)
"""


@pytest.mark.slow
def test_on_one_core_layers_run_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ON_ONE_CORE, str(tmp_path / "m.coexec")]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "{'layer0': 2, 'layer1': 2}\n"), done.stderr
