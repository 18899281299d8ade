"""Winograd's weights are made of a file's kernels when a module is opened: the same that the generator would store."""

import ctypes
import gc
import warnings
from pathlib import Path

import numpy as np
import pytest
from c_internals import internals
from slow import slow_except
from small_modules import chain, expected, with_kernels, with_stored
from test_conv2d import conv
from test_package import damaged, rewrite

from tvm_coexec.compiler.packaging import Choice, package
from tvm_coexec.compiler.target import target_for
from tvm_coexec.errors import FileFormatError
from tvm_coexec.graph import Graph, Node, Tensor
from tvm_coexec.layers import ImageLayouts, Variant
from tvm_coexec.module import package as package_file
from tvm_coexec.module.package import Package
from tvm_coexec.module.table import BLOCK
from tvm_coexec.module.tensors import ConstantSpec, Source
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.module import Module, load
from tvm_coexec.schedules import winograd
from tvm_coexec.verification.checking import random_params
from tvm_coexec.verification.reference import evaluate

pytestmark = pytest.mark.one_runtime

LAYER = conv(8, 6, 40, 72, 3, padding=1, epilogue=("bias", "relu"))
OTHERS = {"a": (33, 1000, 2), "b": (40, 5, 4), "c": (300, 300, 4), "d": (100, 40, 2)}
"""Output and input channels of constants that nothing reads, and m: a tile of the first is larger than a piece."""


def variant(m: int) -> Variant:
    return Variant.make(winograd.IMPLEMENTATION, m=m)


def packed(weights: np.ndarray, m: int) -> np.ndarray:
    return winograd.pack_weights(LAYER, weights, variant(m))


@pytest.mark.parametrize("m", winograd.MULTIPLES)
@pytest.mark.parametrize("in_channels", [1, 7, 40])
def test_weights_are_those_of_the_generator(m: int, in_channels: int) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((64, in_channels, 3, 3), np.float32) * rng.choice([1e-30, 1, 1e30], (64, 1, 1, 1))
    weights = weights.astype(np.float32)
    make = internals().make_winograd_weights
    make.restype, make.argtypes = None, (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    wanted = packed(weights, m)
    made = np.full_like(wanted, np.nan)
    for kernels, target in zip(winograd.pack_kernels(weights), made, strict=True):
        make(m, kernels.ctypes.data, kernels[0].size, target.ctypes.data)
    np.testing.assert_array_max_ulp(made, wanted, 1)  # halves of a last digit are rounded up or down
    assert np.mean(made == wanted) > 0.98


def module_of(device: Device, cpu: int, gpu: int) -> tuple[Package, Node]:
    """A module of one layer, and its node; each half with its own m."""
    target, facts = target_for(device.facts()), device.facts()
    node = Node("layer", LAYER, "x", None, "y", random_params(LAYER, 2))
    sizes = {"x": LAYER.input_sizes[0], "y": LAYER.output_size}
    tensors = {name: Tensor(name, size, image=size) for name, size in sizes.items()}
    first = {
        side: next(v for v in winograd.variants(LAYER, side, target.hardware, ImageLayouts.alone(LAYER)) if v["m"] == m)
        for side, m in (("cpu", cpu), ("gpu", gpu))
    }
    return package(Graph(tensors, ["x"], ["y"], [node]), [Choice(1, **first)], target, facts), node


@pytest.mark.parametrize(("cpu", "gpu"), [(4, 4), (2, 4)])
@pytest.mark.parametrize("mechanism", slow_except([None, "event"], 0))
def test_every_split_is_right_in_a_module_of_a_file(
    cpu: int, gpu: int, mechanism: str | None, device: Device, tmp_path: Path
) -> None:
    used = open_device(device.info.name, mechanism=mechanism) if mechanism else device
    built, node = module_of(used, cpu, gpu)
    path = tmp_path / "m.coexec"
    Module(built, used).export(path)
    module = load(path, device=used)
    x = np.random.default_rng(0).standard_normal(LAYER.input_sizes[0], np.float32)
    wanted = evaluate(LAYER, {**node.params, "input": x}).reshape(LAYER.output_size)
    for units in range(LAYER.units + 1):
        module.set_splits({"layer": units})
        module.outputs["y"][...] = np.nan
        np.testing.assert_allclose(module(x), wanted, atol=5e-5 * np.abs(wanted).max())
    for m in {cpu, gpu}:
        weights = packed(node.params["weights"], m)
        block = module._loaded.block(Source.constant("layer", f"winograd{m}_weights"))
        np.testing.assert_array_max_ulp(block[: weights.nbytes].view(np.float32), weights.reshape(-1), 1)


def with_others(built: Package) -> tuple[Package, dict[str, np.ndarray]]:
    """The package with constants that nothing reads, between which there are others; and what is made of these."""
    rng = np.random.default_rng(3)
    constants: dict[ConstantSpec, np.ndarray] = {}
    made = {}
    for role, (outputs, inputs, m) in OTHERS.items():
        weights = rng.standard_normal((outputs, inputs, 3, 3), np.float32)
        kernels, plain = winograd.pack_kernels(weights), rng.integers(0, 256, 700_001, np.uint8)
        constants[ConstantSpec("nothing", role, kernels.shape, winograd=m)] = kernels
        constants[ConstantSpec("plain", role, plain.shape, "uint8")] = plain
        made[role] = packed(weights, m)
    return with_stored(built, constants), made


def test_tiles_of_any_size_are_made_whole_and_damage_to_them_is_seen(device: Device, tmp_path: Path) -> None:
    built, nodes = chain(device, 2, 5, 64)
    both, made = with_others(built)
    path = tmp_path / "m.coexec"
    both.write(path)
    module, x = load(path, device=device), np.random.default_rng(0).standard_normal((5, 64), np.float32)
    np.testing.assert_allclose(module(x), expected(nodes, x), rtol=1e-4, atol=1e-5)
    for role, weights in made.items():
        block = module._loaded.block(Source.constant("nothing", role))
        np.testing.assert_array_max_ulp(block.view(np.float32), weights.reshape(-1), 1)
        plain = module._loaded.block(Source.constant("plain", role))
        np.testing.assert_array_equal(plain[:700_001], both.constants[Source.constant("plain", role)])
    content = path.read_bytes()
    for place in range(len(content) - 1000, len(content) // 8, -(3 << 20)):
        path.write_bytes(damaged(content, place))
        with pytest.raises(FileFormatError, match="constants have another checksum"):
            load(path, device=device)


def test_what_is_exported_is_in_the_file_still_or_an_error_says_that_it_is_not(device: Device, tmp_path: Path) -> None:
    built, _ = with_others(chain(device, 2, 5, 64)[0])
    path, again = tmp_path / "m.coexec", tmp_path / "again.coexec"
    Module(built, device).export(path)
    content = path.read_bytes()
    assert content == built.to_bytes()
    module = load(path, device=device)
    module.export(path)  # another file takes its place
    path.unlink()
    module.export(again)
    assert again.read_bytes() == content
    module = load(again, device=device)
    with again.open("r+b") as file:
        file.truncate(len(content) // 2)
    with pytest.raises(FileFormatError, match="the module's file was cut off since it was loaded; build it again"):
        module.export(path)
    assert not path.exists()


def test_a_module_that_nothing_refers_to_closes_its_file_without_a_warning(device: Device, tmp_path: Path) -> None:
    built, _ = with_others(chain(device, 2, 5, 64)[0])
    built.write(tmp_path / "m.coexec")
    gc.collect()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        load(tmp_path / "m.coexec", device=device)
        gc.collect()
    assert not [one for one in told if issubclass(one.category, ResourceWarning)]
    assert not [one for one in Path("/proc/self/fd").iterdir() if one.resolve() == tmp_path / "m.coexec"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("content", value) for value in (0, 1, 3, 6, 1 << 31)),
        *(("row_bytes", value) for value in (0, 64, 128 * 3, 1 << 63)),
        ("bytes", 128 * 4 * 36 * 2 - 4),
        ("constant_bytes", 128 * 4 * 9 + 128),
        ("kind", 2),
    ],
)
def test_blocks_that_cannot_be_made_are_refused_though_every_checksum_is_right(
    field: str, value: int, device: Device, tmp_path: Path
) -> None:
    path = tmp_path / "m.coexec"
    with_kernels(chain(device, 2, 5, 64)[0]).write(path)
    load(path, device=device)
    sections = package_file.read_sections(memoryview(path.read_bytes()), path)
    blocks = np.frombuffer(sections["blocks"], BLOCK).copy()
    (number,) = np.flatnonzero(blocks["content"] == 4)
    blocks[number][field] = value
    rewrite(path, blocks=blocks.tobytes())
    with pytest.raises(FileFormatError, match=rf"the module is damaged \(block {number} "):
        load(path, device=device)
