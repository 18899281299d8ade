"""Flags in buffers that stay mapped: asked for by name, exact, and told of wherever a mechanism is named."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from slow import slow_except
from small_modules import chain, expected, one_layer

from tvm_coexec.layers import AnyLayer, Conv2d, Linear, Pool
from tvm_coexec.report.observation import observe
from tvm_coexec.report.page import write_page
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.module import Module, load

LAYERS: list[AnyLayer] = [
    Linear(9, 70, 130, ("bias", "gelu")),
    Conv2d(9, 8, 33, 96, 3, 1, 1, epilogue=("bias", "relu")),
    Conv2d(29, 7, 20, 40, 3, 2, 1, epilogue=("bias", "residual", "relu"), axis="lines"),
    Pool("max", 57, 5, 40, (3, 3), (1, 1), (1, 1, 1, 1), axis="lines"),
]


@pytest.fixture(scope="module")
def mapped(device: Device) -> Iterator[Device]:
    yield open_device(device.info.alias, mechanism="mapped")


@pytest.mark.parametrize("layer", slow_except(LAYERS, 2), ids=str)
def test_every_split_of_a_layer_is_exact(layer: AnyLayer, mapped: Device) -> None:
    module = Module(one_layer(layer, mapped), mapped)
    for cpu_units in range(layer.units + 1):
        assert module.check_step(0, cpu_units, layer.units - cpu_units, seed=cpu_units) < module.error_bound(0)


@pytest.mark.parametrize("built_for", slow_except(["mapped", "what the device promises"], 0))
def test_networks_are_right_whatever_the_splits(built_for: str, mapped: Device, device: Device) -> None:
    """Kernels that were chained for the device's own mechanism are plain ones beside kernels that wait and signal."""
    package, nodes = chain(mapped if built_for == "mapped" else device, 5, 11, 96)
    entries = {launch.entry for step in package.manifest.steps if step.gpu for launch in step.gpu.launches}
    assert built_for != "mapped" or entries == {"step"}
    module, rng = Module(package, mapped), np.random.default_rng(0)
    for splits in [(0, 0, 0, 0, 0), (3, 3, 3, 3, 3), *rng.integers(0, 4, (12, 5)).tolist()]:
        module.set_splits({node.name: units for node, units in zip(nodes, splits, strict=True)})
        x = rng.standard_normal((11, 96), np.float32)
        module.outputs["t5"][:] = np.nan
        np.testing.assert_allclose(module(x), expected(nodes, x), rtol=1e-3, atol=1e-3)
    assert {event.side for event in module.profile()} == {"cpu", "gpu"}


def test_a_module_asks_for_it_again(mapped: Device, device: Device, tmp_path: Path) -> None:
    package, nodes = chain(mapped, 2, 5, 64)
    package.write(tmp_path / "m.coexec")
    x = np.ones((5, 64), np.float32)
    loaded = load(tmp_path / "m.coexec", cpu_cores=device.cpu_cores, gpu_cores=device.gpu_cores)
    assert loaded.mechanism == "mapped" and "lost none here" in loaded.device.info.mechanism_reason
    np.testing.assert_allclose(loaded(x), expected(nodes, x), rtol=1e-3, atol=1e-3)
    assert load(tmp_path / "m.coexec", device=device).mechanism == device.mechanism


def test_readers_are_told_that_opencl_does_not_promise_it(
    mapped: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnx_builder import OnnxBuilder, linear

    import tvm_coexec
    from tvm_coexec import cli

    builder = OnnxBuilder(x=(9, 64))
    module = tvm_coexec.build(builder.model(linear(builder, "x", 64, 96)), device=mapped, split=0.5)
    module.export(tmp_path / "m.coexec")
    words = "mapped (which OpenCL does not promise to work)"
    assert f"synchronised by {words}" in str(module.plan)
    assert cli.main(["inspect", str(tmp_path / "m.coexec")]) == 0
    assert f"mechanism {words}" in capsys.readouterr().out
    assert f"synchronised by {words}" in write_page(observe(module, repeats=2), "a layer")


def test_it_is_never_chosen_unasked(device: Device) -> None:
    assert open_device(device.info.alias).mechanism != "mapped"
