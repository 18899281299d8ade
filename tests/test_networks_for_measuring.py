"""Modules of whole networks that a device is sent to be measured: light, and timed half by half."""

from dataclasses import replace

import numpy as np
import pytest
from small_modules import chain, chain_of, expected
from test_opaque import token_model

from tvm_coexec.api import plan_graph
from tvm_coexec.compiler.packaging import package, package_plan
from tvm_coexec.compiler.target import target_for
from tvm_coexec.frontends import to_graph
from tvm_coexec.layers import Opaque
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module
from tvm_coexec.verification.checking import random_params
from tvm_coexec.verification.reference import relative_error

pytestmark = pytest.mark.one_runtime


def test_halves_are_timed_as_they_run_in_the_network(device: Device) -> None:
    built, _ = chain(device, 3, 5, 64)
    module = Module(built, device)
    module.set_splits({"layer0": 0, "layer1": 2})
    halves_us = module.time_halves(repeats=4)
    assert [tuple(map(len, half)) for half in halves_us] == [(0, 4), (4, 0), (4, 4)]
    assert all(us > 0 for half in halves_us for times_us in half for us in times_us)


def test_operators_that_run_whole_keep_their_constants(device: Device) -> None:
    graph = to_graph(token_model())
    target = target_for(device.facts())
    plan = plan_graph(graph, device, split="cpu")
    built = package_plan(graph.without_weights(), plan, target, device.facts(), seed=4)
    opaque = [node for node in graph.nodes if isinstance(node.layer, Opaque)]
    kept = {(node.name, role) for node in opaque for role in node.params}
    assert {(spec.step, spec.role) for spec in built.manifest.constants} == kept != set()
    module = Module(built, device)
    module.run()
    assert all(len(cpu_us) == 2 and not gpu_us for cpu_us, gpu_us in module.time_halves(repeats=2))


def test_a_module_for_measuring_makes_its_own_weights(device: Device) -> None:
    graph, choices = chain_of(device, 3, 5, 64)
    target = target_for(device.facts())
    real, light = (Module(package(graph, choices, target, device.facts(), seed=seed), device) for seed in (None, 4))
    assert len(light._package.to_bytes()) + 3 * 64 * 64 * 4 <= len(real._package.to_bytes()) + 1024
    params = [random_params(node.layer, 4) for node in graph.nodes]
    x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    seeded = [replace(node, params=own) for node, own in zip(graph.nodes, params, strict=True)]
    assert relative_error(light(x), expected(seeded, x)) < 1e-5
    assert relative_error(real(x), expected(graph.nodes, x)) < 1e-5
