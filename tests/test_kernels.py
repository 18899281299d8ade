"""Compiled kernels: the cache that they are kept in, and what their OpenCL source looks like."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tvm_coexec import schedules
from tvm_coexec.cache import Cache
from tvm_coexec.compiler.kernels import compile_half
from tvm_coexec.compiler.target import Target
from tvm_coexec.errors import KernelError
from tvm_coexec.layers import AnyLayer, Conv2d, Hardware, Linear, PlaceRows, RowWise, Variant

CPU_DEVICE = Target((("kind", "llvm"),), Hardware(64, 32, "cpu"))
GPU = Target((("kind", "llvm"),), Hardware(64, 32, "gpu"))
DEPTHWISE = Conv2d(12, 12, 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), groups=64, epilogue=("bias", "relu6"))


def gpu_source(layer: AnyLayer, target: Target) -> str:
    variant = schedules.family(layer).default_variant(layer, "gpu", target.hardware)
    return b"".join(kernel.code for kernel in compile_half(layer, "gpu", variant, target)).decode()


def body(source: str) -> str:
    return source[source.rindex("__kernel void") :].partition("{")[2]


def test_a_damaged_entry_of_the_cache_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_coexec.compiler.kernels.kept_kernels", lambda: Cache(tmp_path, 1 << 20))
    layer = Linear(3, 5, 7, ())
    variant = schedules.family(layer).default_variant(layer, "gpu", CPU_DEVICE.hardware)
    compiled = compile_half(layer, "gpu", variant, CPU_DEVICE)
    (entry,) = (path for path in tmp_path.rglob("*") if path.is_file())
    whole = entry.read_bytes()
    for damaged in (b"", whole[:10], whole[:-1], whole.replace(b"float", b"fleat", 1), whole[:-9] + b"9" + whole[-8:]):
        assert damaged != whole
        entry.write_bytes(damaged)
        assert compile_half(layer, "gpu", variant, CPU_DEVICE) == compiled
        assert entry.read_bytes() == whole


ON_A_FULL_DISK = """
import resource, tempfile
from test_kernels import CPU_DEVICE, Linear, compile_half, schedules
import tvm
layer = Linear(3, 5, 7, ())
variant = schedules.family(layer).default_variant(layer, "cpu", CPU_DEVICE.hardware)
tempfile.gettempdir()  # which is looked for once, by writing there
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
try:
    compile_half(layer, "cpu", variant, CPU_DEVICE)
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.slow
def test_a_disk_without_room_is_an_error_of_ours(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ON_A_FULL_DISK]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    where = Path(__file__).parent
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "File too large\n"), done.stderr


def test_a_variant_that_divides_by_zero_is_refused() -> None:
    layer = Linear(3, 5, 7, ())
    variant = schedules.family(layer).default_variant(layer, "gpu", CPU_DEVICE.hardware)
    edited = {**variant.to_json(), "channel_threads": 0}
    with pytest.raises(KernelError, match="does not compile: integer division or modulo by zero"):
        compile_half(layer, "gpu", Variant.from_json(edited), CPU_DEVICE)


def test_devices_that_need_the_same_code_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_coexec.compiler.kernels.kept_kernels", lambda: Cache(tmp_path, 1 << 20))
    layer, hardware = Linear(3, 5, 7, ()), CPU_DEVICE.hardware
    like = replace(CPU_DEVICE, hardware=replace(hardware, max_group_size=2 * hardware.max_group_size, workers=3))
    variants = {side: schedules.family(layer).default_variant(layer, side, hardware) for side in ("cpu", "gpu")}
    compiled = {side: compile_half(layer, side, variant, CPU_DEVICE) for side, variant in variants.items()}
    monkeypatch.setattr("tvm_coexec.compiler.kernels._generate", lambda *given: ())
    assert {side: compile_half(layer, side, variant, like) for side, variant in variants.items()} == compiled
    for side, other in (("cpu", replace(like, llvm=(("kind", "llvm"), ("mcpu", "x86-64")))), ("gpu", GPU)):
        assert compile_half(layer, side, variants[side], other) == ()


def test_the_opencl_kernel_takes_its_buffers_in_order() -> None:
    source = gpu_source(Linear(13, 64, 96, ("bias", "residual")), CPU_DEVICE)
    positions = [
        source.index(f"p{position:02d}_{role}_ptr")
        for position, role in enumerate(("input", "weights", "bias", "residual", "output"))
    ]
    assert positions == sorted(positions)


@pytest.mark.parametrize("layer", [DEPTHWISE, Linear(13, 64, 96), RowWise("softmax", 17, 96)], ids=lambda one: one.op)
def test_a_cpu_device_counts_in_64_bits_and_a_gpu_in_32(layer: AnyLayer) -> None:
    wide, narrow = (gpu_source(layer, target) for target in (CPU_DEVICE, GPU))
    assert "int begin, int count" in wide and "int begin, int count" in narrow
    assert re.search(r"\blong\b", body(wide)) and not re.search(r"\bint\b", body(wide))
    assert re.search(r"\bint\b", body(narrow)) and not re.search(r"\blong\b", body(narrow))


def test_a_kernel_with_a_select_stays_as_it_is() -> None:
    layer = PlaceRows(batch=2, in_rows=6, out_rows=7, channels=70, shift=1, has_summand=False)
    source = body(gpu_source(layer, CPU_DEVICE))
    assert "select(" in source and not re.search(r"\blong\b", source)


def test_only_where_a_device_runs_several_groups_at_once_does_one_of_them_compute_several_blocks() -> None:
    def runs(workers: int) -> set[bool]:
        hardware = Hardware(32, 16, "cpu", workers=workers)
        return {"run" in dict(one.params) for one in schedules.family(DEPTHWISE).variants(DEPTHWISE, "gpu", hardware)}

    assert runs(workers=1) == {False} and runs(workers=2) == {True}


def test_blocks_of_short_reductions_divide_a_line_and_store_it_in_one_go() -> None:
    hardware = Hardware(32, 16, "cpu")
    short, long = (Conv2d(112, 112, k, 96, (1, 1)) for k in (16, 512))
    for side in ("cpu", "gpu"):
        best = [schedules.family(layer).variants(layer, side, hardware) for layer in (short, long)]
        assert 112 % best[0][0]["rows"] == 0 and {one["order"] for one in best[0]} == {1}
        assert best[1][0]["rows"] == 6 and {one["order"] for one in best[1]} == {0, 1}


def test_a_tile_of_one_vector_must_save_something_where_registers_are_few() -> None:
    def fewest_vectors(channels: int) -> int:
        hardware, layer = Hardware(32, 16, "cpu"), Conv2d(14, 14, 480, channels, (1, 1))
        found = schedules.family(layer).variants(layer, "cpu", hardware)
        return min(one["channels"] for one in found) // hardware.lanes

    assert fewest_vectors(24) == 1, "it leaves out a quarter of the tile"
    assert fewest_vectors(96) == 2
