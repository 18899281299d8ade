"""Splits that follow the device: whatever is moved, results stay right, and what was moved is told."""

import subprocess
import sys

import numpy as np
import pytest
from small_modules import chain, expected, with_cut_waits

from tvm_coexec.errors import InputError
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.module import Module

RUNS = 60


@pytest.mark.parametrize("start", (None, 1, 5), ids=("as planned", "nearly all on the GPU", "nearly all on the CPU"))
def test_results_stay_right_while_units_move(device: Device, start: int | None) -> None:
    package, nodes = chain(device, 4, 5, 192)
    module = Module(package, device, adapt=True)
    if start is not None:
        module.set_splits({node.name: start for node in nodes})
    rng = np.random.default_rng(0)
    for _ in range(RUNS):
        x = rng.standard_normal((5, 192)).astype(np.float32)
        np.testing.assert_allclose(module(x), expected(nodes, x), rtol=1e-3, atol=1e-3)
    assert all(0 < units < 6 for units in module.splits.values())
    assert "lately the CPU took" in module.adaptation
    moved = [name for name, units in module.splits.items() if units != package.manifest.steps[0].cpu_units]
    assert len(module.adaptation.splitlines()) == 1 + len(moved)


@pytest.mark.slow
def test_a_cut_wait_counts_as_a_slow_cpu(device: Device) -> None:
    """Such a run is made again in a form that shows no waits; every look would otherwise miss the slowest ones."""
    package, nodes = chain(device, 4, 48, 192)
    module = Module(with_cut_waits(package), device, adapt=True)
    module.set_splits({node.name: 5 for node in nodes})
    x = np.ones((48, 192), np.float32)
    told = []
    for _ in range(RUNS):
        np.testing.assert_allclose(module(x), expected(nodes, x), rtol=1e-3, atol=1e-3)
        told.append(module.adaptation.partition("\n")[0])
    assert any("took 4.00 times" in line for line in told), told[-1]


def test_layers_of_one_side_stay_there(device: Device) -> None:
    package, nodes = chain(device, 2, 5, 192)
    module = Module(package, device, adapt=True)
    module.set_splits({nodes[0].name: 6, nodes[1].name: 0})
    x = np.ones((5, 192), np.float32)
    for _ in range(RUNS):
        np.testing.assert_allclose(module(x), expected(nodes, x), rtol=1e-3, atol=1e-3)
    assert list(module.splits.values()) == [6, 0]


def test_adapting_needs_flags(device: Device) -> None:
    package, _ = chain(device, 2, 5, 192)
    events = open_device(device.info.alias, mechanism="event")
    with pytest.raises(InputError, match="splits adapt by what flags show"):
        Module(package, events, adapt=True)
    assert not Module(package, events).adaptation.partition("0 moves helped")[0]


@pytest.mark.slow
def test_results_stay_right_beside_a_program_that_wants_the_core(device: Device) -> None:
    """Its waits sleep then, until shortly before the GPU is expected to be done."""
    package, nodes = chain(device, 4, 48, 192)
    module = Module(package, device)
    x = np.random.default_rng(0).standard_normal((48, 192)).astype(np.float32)
    spin = f"import os\nos.sched_setaffinity(0, {{{device.cpu_cores[0]}}})\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None and other.stdout.readline()
            for start in (1, 3, 5):
                module.set_splits({node.name: start for node in nodes})
                for _ in range(RUNS):
                    np.testing.assert_allclose(module(x), expected(nodes, x), rtol=1e-3, atol=1e-3)
        finally:
            other.kill()
