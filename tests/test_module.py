"""Modules on a real OpenCL device: every split is exact, and waits are bounded."""

import contextlib
import gc
import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slow import slow_except
from small_modules import chain, expected, one_layer

from tvm_coexec import schedules
from tvm_coexec.compiler.probes import single_layer
from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import InputError, KernelError, SyncTimeoutError
from tvm_coexec.layers import AnyLayer, Concat, Conv2d, Elementwise, Linear, LocalNorm, Pool, Rearrange, Resize, RowWise
from tvm_coexec.module.tensors import Source
from tvm_coexec.runtime import loaded
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.module import Module, load
from tvm_coexec.verification.reference import relative_error

LAYERS = [
    Linear(13, 33, 161, ("bias", "gelu")),
    Linear(1, 70, 64, ("bias", "residual", "relu")),
    Linear(50, 64, 100, ("silu",)),
    RowWise("layer_norm", 21, 70, (), 1e-5),
    RowWise("softmax", 17, 10),
    RowWise("softmax", 3, 48),
    RowWise("layer_norm", 4, 80, (), 1e-5),
    RowWise("map", 9, 33, ("bias", "gelu_tanh", "residual")),
    Conv2d(9, 7, 3, 70, 3, 2, 1, epilogue=("bias", "relu")),
    Conv2d(7, 7, 20, 130, 3, 1, 1, batch=2, epilogue=("bias", "residual", "relu")),
    Conv2d(6, 5, 48, 96, 1, epilogue=("bias", "sigmoid")),
    Conv2d(8, 8, 72, 72, 3, 1, 1, groups=72, epilogue=("bias", "relu6")),
    Conv2d(8, 8, 24, 72, 3, 1, (2, 1), groups=3),
    Pool("max", 9, 7, 70, (3, 3), (2, 2), (1, 1, 1, 1), batch=2, epilogue=("bias", "residual")),
    Concat(5, 4, (48, 16, 40)),
    Concat(2, 2, (32,) * 20),
    Elementwise("multiply", (2, 5, 4, 70), (2, 1, 1, 70), ("residual", "relu")),
    Elementwise("subtract", (1, 1, 4, 70), (1, 5, 4, 1), ("leaky_relu(0.1)", "scale", "bias")),
    Rearrange((1, 4, 5, 48), (1, 4, 5, 70), ((1, 4, 1, 1), (2, 5, 2, 1), (3, 70, 3, 1)), (0, 0, 0, -22)),
    Resize((2, 4, 5, 40), 8, 5, (0.5, 1.0), (-0.25, 0.0), ("residual",)),
    LocalNorm(5, 4, 70, 5, 0.5, 0.75, 1.0),
    Conv2d(29, 7, 20, 40, 3, 2, 1, epilogue=("bias", "residual", "relu"), axis="lines"),
    Conv2d(28, 6, 40, 33, 3, 1, 1, axis="lines"),
    Pool("max", 57, 5, 40, (3, 3), (1, 1), (1, 1, 1, 1), axis="lines"),
]


@pytest.fixture(params=["svm", "event"])
def mechanism_device(request: pytest.FixtureRequest, device: Device) -> Iterator[Device]:
    if request.param == "svm" and device.info.mechanism != "svm":
        pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
    yield open_device(device.info.name, mechanism=request.param)


@pytest.mark.parametrize("layer", slow_except([LAYERS[0], LAYERS[3], *LAYERS[-8:]], 0, 1), ids=str)
def test_memory_that_is_not_shared_is_copied(layer: AnyLayer, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = open_device(device.info.name, mechanism="event")
    monkeypatch.setattr(apart, "info", replace(apart.info, unified_memory=False))
    module = Module(one_layer(layer, apart), apart)
    for cpu_units in range(layer.units + 1):
        assert module.check_step(0, cpu_units, layer.units - cpu_units) < module.error_bound(0)


IN_TURN = [(mechanism, layer) for mechanism in ("svm", "event") for layer in LAYERS]


@pytest.mark.parametrize(
    ("mechanism_device", "layer"),
    slow_except(IN_TURN, *(0, 4, 8, 12, 14, 16, 21), *(len(LAYERS) + index for index in (2, 8))),
    indirect=["mechanism_device"],
    ids=str,
)
def test_every_split_of_a_layer_is_exact(layer: AnyLayer, mechanism_device: Device) -> None:
    module = Module(one_layer(layer, mechanism_device), mechanism_device)
    for cpu_units in range(layer.units + 1):
        assert module.check_step(0, cpu_units, layer.units - cpu_units, seed=cpu_units) < module.error_bound(0)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.slow
def test_scratch_memory_serves_all_calls_of_a_program_and_goes_with_it(device: Device) -> None:
    layer, target = Conv2d(58, 58, 64, 64, 3, 1, 1), target_for(device.facts())
    variants = [v for v in schedules.conv2d.variants(layer, "cpu", target.hardware) if v.implementation == "winograd"]
    scratch_bytes = {v: 4 * (v["m"] + 2) ** 2 * v["block_groups"] * v["rows"] * layer.in_channels for v in variants}
    largest = max(scratch_bytes, key=scratch_bytes.__getitem__)
    assert scratch_bytes[largest] > 2 << 20, "a huge page is not enough"
    gpu = schedules.conv2d.default_variant(layer, "gpu", target.hardware)
    module = Module(single_layer(layer, largest, gpu, target, device.facts()), device)
    assert module.check_step(0, 1, 1) < module.error_bound(0)
    unused = module.memory
    x = np.random.default_rng(5).standard_normal(module.inputs["x"].shape, np.float32)
    results = [np.array(module(x=x)) for _ in range(3)]
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
    grown = module.memory.peak_bytes - unused.peak_bytes
    assert grown == module.memory.scratch_bytes - unused.scratch_bytes >= scratch_bytes[largest]
    before = resident_bytes()
    for _ in range(24):  # programs of other threads, which end where they did not run
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(module.check_step, 0, 2, 0).result() < module.error_bound(0)
    assert resident_bytes() - before < 8 * scratch_bytes[largest]


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["winograd", "direct"])
def test_halves_may_read_weights_of_different_packings(implementation: str, mechanism_device: Device) -> None:
    layer = Conv2d(9, 8, 33, 96, 3, 1, 1, epilogue=("bias", "relu"))
    target = target_for(mechanism_device.facts())
    other = {"winograd": "direct", "direct": "winograd"}[implementation]
    cpu, gpu = (
        next(v for v in schedules.conv2d.variants(layer, side, target.hardware) if v.implementation == wanted)
        for side, wanted in (("cpu", implementation), ("gpu", other))
    )
    module = Module(single_layer(layer, cpu, gpu, target, mechanism_device.facts()), mechanism_device)
    for cpu_units in range(layer.units + 1):
        assert module.check_step(0, cpu_units, layer.units - cpu_units) < module.error_bound(0)
        times = module.time_step(0, cpu_units, layer.units - cpu_units, repeats=3)
        assert len(times.wall_us) == 3


def test_the_halo_of_an_image_stays_zero(mechanism_device: Device) -> None:
    layer = Conv2d(6, 7, 40, 64, 3, 1, (1, 2))
    module = Module(one_layer(layer, mechanism_device), mechanism_device)
    assert module.input_shapes == {"x": (1, 6, 7, 40)}
    x = np.random.default_rng(0).standard_normal((1, 6, 7, 40), np.float32)
    first = module(x)
    np.testing.assert_array_equal(module(x), first)
    assert np.count_nonzero(module._loaded.block(Source.tensor("x")).view(np.float32)) == x.size


def test_a_network_gives_the_same_result_whatever_the_splits(mechanism_device: Device) -> None:
    built, nodes = chain(mechanism_device, 5, 11, 96)
    module = Module(built, mechanism_device)
    x = np.random.default_rng(0).standard_normal((11, 96), np.float32)
    wanted = expected(nodes, x)

    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.integers(0, 3), min_size=5, max_size=5))
    def check(units: list[int]) -> None:
        module.set_splits({f"layer{i}": count for i, count in enumerate(units)})
        module.outputs["t5"][:] = np.nan
        assert relative_error(module(x), wanted) < 1e-5

    check()


def test_runs_with_other_inputs_do_not_mix(mechanism_device: Device) -> None:
    built, nodes = chain(mechanism_device, 3, 5, 64)
    module = Module(built, mechanism_device)
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((5, 64), np.float32)
        assert relative_error(module(x), expected(nodes, x)) < 1e-5


def test_time_step_gives_one_entry_a_repetition(mechanism_device: Device) -> None:
    module = Module(one_layer(LAYERS[0], mechanism_device), mechanism_device)
    for cpu_units, gpu_units in [(6, 0), (0, 6), (3, 3), (1, 0), (0, 2)]:
        times = module.time_step(0, cpu_units, gpu_units, repeats=5)
        assert len(times.wall_us) == 5
        assert len(times.cpu_us) == (5 if cpu_units else 0)
        assert len(times.gpu_us) == (5 if gpu_units else 0)
        assert min(times.wall_us + times.cpu_us + times.gpu_us) > 0
    without = module.time_step(0, 0, 6, repeats=5, walls=False)
    assert len(without.gpu_us) == 5 and not without.wall_us


def test_a_chain_of_the_gpu_hands_over_its_last_result_alone(mechanism_device: Device) -> None:
    module = Module(one_layer(LAYERS[0], mechanism_device), mechanism_device)
    program = module._loaded.chain(0, 0, 6, 5)
    program.run_for(0)
    assert [span.step for span in program.spans() if span.action in ("wait", "transfer") and span.step] == [5]


def test_the_timeline_has_both_sides_and_their_waits(device: Device) -> None:
    built, _ = chain(device, 3, 5, 64)
    events = Module(built, device).profile()
    assert {event.side for event in events} == {"cpu", "gpu"}
    assert {event.step for event in events if event.kind in ("call", "kernel")} == {"layer0", "layer1", "layer2"}
    assert all(event.end_us >= event.start_us for event in events)


def test_benchmark_keeps_every_sample(device: Device) -> None:
    built, _ = chain(device, 2, 5, 64)
    assert len(Module(built, device).benchmark(repeats=7).latency_us) == 7


@pytest.mark.parametrize(("run_ms", "most"), [(2000, 1), (200, 2), (1, 500), (0.01, 1000)])
def test_no_call_times_runs_for_longer_than_a_signal_may_wait(
    run_ms: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def coexec_benchmark(_: object, warmup: int, repeats: int, latency_ns: Any) -> int:
        asked.append((warmup, repeats))
        latency_ns[:] = [int(run_ms * 10**6)] * repeats
        return 0

    monkeypatch.setattr(loaded, "library", lambda: SimpleNamespace(coexec_benchmark=coexec_benchmark))
    module: Any = SimpleNamespace(check=lambda _: None, handle=SimpleNamespace(pointer=None))
    assert loaded.Loaded.benchmark_us(module, warmup=3, repeats=1200) == [run_ms * 1e3] * 1200
    assert asked[0] == (3, 1) and {warmup for warmup, _ in asked[1:]} == {0}
    assert max(repeats for _, repeats in asked) == most


@pytest.mark.parametrize(
    ("repeats", "warmup"),
    [(0, 1), (-1, 1), (2**31, 1), (10**30, 1), (1, -1), (1, 2**31), (1.5, 1), (None, 1), ("a", 1), (1, float("nan"))],
)
def test_numbers_of_runs_that_give_no_times_are_refused(device: Device, repeats: Any, warmup: Any) -> None:
    built, _ = chain(device, 1, 5, 64)
    module = Module(built, device)
    for measure in (module.benchmark, module.time_halves, partial(module.time_step, 0, 1, 1)):
        with pytest.raises(InputError, match=r"(repeats|warmup) must be a whole number from . to 1000000, got"):
            measure(repeats=repeats, warmup=warmup)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), 1e6 + 1, 1e300, "a", None, True])
def test_bounds_that_are_no_times_are_refused_and_the_longest_is_not(device: Device, timeout_s: Any) -> None:
    built, nodes = chain(device, 1, 5, 64)
    with pytest.raises(InputError, match=r"timeout_s must be a positive number of seconds, 1e\+06 at most, got"):
        Module(built, device, timeout_s=timeout_s)
    x = np.ones((5, 64), np.float32)
    assert np.allclose(Module(built, device, timeout_s=1e6)(x), expected(nodes, x), atol=1e-4)


def test_wrong_inputs_are_named(device: Device) -> None:
    built, _ = chain(device, 1, 5, 64)
    module = Module(built, device)
    good = np.zeros((5, 64), np.float32)
    with pytest.raises(InputError, match=r"float32 array of shape \(5, 64\), not float32 \(5, 63\)"):
        module(good[:, :63])
    with pytest.raises(InputError, match="not float64"):
        module(good.astype(np.float64))
    with pytest.raises(InputError, match="missing input t0"):
        module()
    with pytest.raises(InputError, match="takes 1 inputs"):
        module(good, good)
    with pytest.raises(InputError, match="'nope' is unknown"):
        module(good, nope=good)
    with pytest.raises(InputError, match="no layer 'nope'"):
        module.set_splits({"nope": 1})
    for units in (9, -1, 1.5, "a", None):
        with pytest.raises(InputError, match=f"cannot compute {units}"):
            module.set_splits({"layer0": units})
    before = module.splits
    with pytest.raises(InputError, match="no layer 'nope'"):
        module.set_splits({"layer0": 0 if before["layer0"] else 1, "nope": 1})
    assert module.splits == before


def test_a_cpu_kernel_that_refuses_its_arguments_says_why(device: Device) -> None:
    built = one_layer(LAYERS[2], device)
    (step,) = built.manifest.steps
    assert step.cpu is not None
    (launch,) = step.cpu.launches
    first, *others = launch.arguments
    longer = replace(first, shape=(first.shape[0] + 1, *first.shape[1:]))
    wrong = replace(launch, arguments=(longer, *others))
    steps = (replace(step, cpu=replace(step.cpu, launches=(wrong,))),)
    module = Module(replace(built, manifest=replace(built.manifest, steps=steps)), device)
    module.set_splits({step.name: step.units})
    with pytest.raises(KernelError, match=rf"layer '{step.name}': the CPU kernel failed: \w+: .*shape"):
        module.run()


def test_a_bound_that_is_too_short_leaves_the_device_to_others(mechanism_device: Device) -> None:
    built, nodes = chain(mechanism_device, 2, 5, 64)
    hasty, other = Module(built, mechanism_device, timeout_s=1e-9), Module(built, mechanism_device)
    x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    for _ in range(20):
        with contextlib.suppress(SyncTimeoutError):
            hasty(x)
        assert relative_error(other(x), expected(nodes, x)) < 1e-5


def test_what_was_handed_to_the_device_does_not_come_back_over_what_the_cpu_computes(mechanism_device: Device) -> None:
    layer = Linear(1, 70, 64, ("bias", "residual", "relu"))
    module = Module(one_layer(layer, mechanism_device), mechanism_device)
    for _ in range(300):
        assert module.check_step(0, layer.units, 0) < module.error_bound(0)


@pytest.mark.one_runtime
def test_modules_that_go_leave_nothing_behind(device: Device, tmp_path: Path) -> None:
    """Else the 13,000th module of a process finds no room among its mappings."""

    def held() -> tuple[int, int]:
        gc.collect()
        return len(Path("/proc/self/maps").read_text().splitlines()), len(list(Path("/proc/self/fd").iterdir()))

    path = tmp_path / "layer.coexec"
    one_layer(LAYERS[2], device).write(path)
    before = (0, 0)
    for loads in range(24):
        load(path, device=device).run()
        if loads == 8:
            before = held()
    assert held()[1] <= before[1] and held()[0] <= before[0] + 8, "an allocator may map a little"
