"""The CPU's threads: so many of them as a variant says compute a half, and what they compute is the same to the bit."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from slow import slow_except
from small_modules import chain_of, expected
from test_conv2d import conv

from tvm_coexec import schedules
from tvm_coexec.compiler.kernels import compile_half
from tvm_coexec.compiler.packaging import Choice, package
from tvm_coexec.compiler.probes import single_layer
from tvm_coexec.compiler.target import target_for
from tvm_coexec.compiler.toolchain import c_compiler
from tvm_coexec.layers import AnyLayer, Attention, Linear, Pool, RowWise, Variant, by_lines
from tvm_coexec.module.package import Package
from tvm_coexec.module.table import STEP, Tables
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.library import SOURCE_FOLDER
from tvm_coexec.runtime.module import Module, load

CORES = 4
LINES = by_lines(conv(30, 6, 24, 40, 3, padding=1, epilogue=("bias", "relu")))
assert LINES is not None
LAYERS: list[AnyLayer] = [
    Linear(37, 70, 300, ("bias",)),
    conv(9, 7, 20, 200, 3, padding=1, epilogue=("bias", "relu")),
    conv(14, 14, 96, 96, 3, padding=1, groups=96),
    LINES,
    RowWise("softmax", 70, 33),
    Pool("max", 14, 9, 96, (3, 3), (2, 2), (1, 1, 1, 1)),
    Attention(1, 4, 20, 20, 32, 0.2, (128, 128, 128)),
]


@pytest.fixture
def wide(device: Device) -> Iterator[Device]:
    """The device as if the CPU's side had several cores, all of which are the one that it has."""
    opened = Device(device.info, device.context, device.cpu_cores[:1] * CORES, device.gpu_cores)
    yield opened
    opened.close()


def cpu_variants(layer: AnyLayer, device: Device) -> list[Variant]:
    """The first variant of each implementation."""
    found = schedules.family(layer).variants(layer, "cpu", target_for(device.facts()).hardware)
    return list({one.implementation: one for one in reversed(found)}.values())


def module_of(layer: AnyLayer, cpu: Variant, device: Device) -> Package:
    target = target_for(device.facts())
    gpu = schedules.family(layer).default_variant(layer, "gpu", target.hardware)
    return single_layer(layer, cpu, gpu, target, device.facts())


def opened(built: Package, path: Path, device: Device) -> Module:
    path.write_bytes(built.to_bytes())
    return load(path, device=device)


@pytest.mark.parametrize("layer", slow_except(LAYERS, 0, 6), ids=str)
def test_every_split_by_any_number_of_threads(layer: AnyLayer, wide: Device, tmp_path: Path) -> None:
    for variant in cpu_variants(layer, wide):
        modules = [
            opened(module_of(layer, replace(variant, threads=threads), wide), tmp_path / f"{threads}", wide)
            for threads in (1, 2, 3, 0)
        ]
        for cpu_units in range(1, layer.units + 1):
            results = []
            for module in modules:
                error = module.check_step(0, cpu_units, layer.units - cpu_units, seed=cpu_units)
                assert error <= module.error_bound(0)
                results += [array.copy() for array in module.outputs.values()]
            for other in results[1:]:
                np.testing.assert_array_equal(results[0], other)


@pytest.mark.one_runtime
@pytest.mark.parametrize(
    ("threads", "units", "working"), [(1, 8, 1), (2, 8, 2), (3, 8, 3), (0, 8, 4), (9, 8, 4), (3, 2, 2)]
)
def test_so_many_threads_take_part(threads: int, units: int, working: int, wide: Device, tmp_path: Path) -> None:
    layer = Linear(9, 64, 256)
    (variant, *_) = cpu_variants(layer, wide)
    module = opened(module_of(layer, replace(variant, threads=threads), wide), tmp_path / "m", wide)
    for _ in range(20):
        assert module.check_step(0, units, layer.units - units) <= module.error_bound(0)
        assert wide.threads_ran_on() == (*wide.cpu_cores[:working], *[None] * (CORES - working))


@pytest.mark.one_runtime
def test_layers_of_one_module_by_different_numbers_of_threads(wide: Device, tmp_path: Path) -> None:
    graph, choices = chain_of(wide, 9, 20, 160)
    choices = [
        Choice(choice.cpu_units, replace(choice.cpu, threads=number % 4), choice.gpu)
        for number, choice in enumerate(choices)
        if choice.cpu
    ]
    module = opened(package(graph, choices, target_for(wide.facts()), wide.facts()), tmp_path / "m", wide)
    for seed in range(30):
        x = np.random.default_rng(seed).standard_normal((20, 160), np.float32)
        wanted = expected(graph.nodes, x)
        np.testing.assert_allclose(module(x), wanted, atol=2e-5 * np.abs(wanted).max())


def test_a_kernel_is_compiled_once_for_all_numbers_of_threads(device: Device) -> None:
    layer, target = Linear(9, 64, 96), target_for(device.facts())
    (variant, *_) = cpu_variants(layer, device)
    kernels = [compile_half(layer, "cpu", replace(variant, threads=threads), target) for threads in (0, 1, 2)]
    assert kernels[0] == kernels[1] == kernels[2]


def test_the_threads_are_in_the_file(device: Device) -> None:
    layer = Linear(9, 64, 96)
    (variant, *_) = cpu_variants(layer, device)
    built = module_of(layer, replace(variant, threads=3), device)
    sections = Tables(built.manifest, built.library, built.opencl_source).sections
    assert np.frombuffer(sections["steps"], STEP)["cpu_threads"] == [3]


def test_a_variant_tells_its_threads() -> None:
    variant = replace(Variant.make("direct", rows=4), threads=2)
    assert Variant.from_json(variant.to_json()) == variant != variant.kernel
    assert str(variant) == "direct rows=4 threads=2"
    assert variant.kernel.to_json() == {"implementation": "direct", "rows": 4}
    with pytest.raises(ValueError, match="no half is computed by -1 threads"):
        Variant.from_json({"implementation": "direct", "threads": -1})


@pytest.mark.slow
def test_paces_stay_numbers_however_often_threads_are_interrupted(tmp_path: Path) -> None:
    sources = [str(path) for path in sorted(SOURCE_FOLDER.glob("*.c")) if path.name != "pool.c"]
    program = [str(Path(__file__).parent / "stub" / "paces.c"), *sources, "-ldl", "-lm"]
    command = [
        c_compiler(),
        "-std=c11",
        "-pthread",
        f"-I{SOURCE_FOLDER}",
        *program,
        "-o",
        str(tmp_path / "paces"),
    ]
    subprocess.run(command, check=True)
    printed = subprocess.run([str(tmp_path / "paces")], check=True, capture_output=True, text=True).stdout
    least, most, total = map(float, printed.split())
    assert total == pytest.approx(3) and 0.2 < least < 0.9 and 1.05 < most < 2
