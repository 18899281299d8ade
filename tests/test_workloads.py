"""Layers by name: the networks' convolutions, files, and what tuning may train on."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.numpy_helper import from_array

from tvm_coexec.errors import FileFormatError, InputError
from tvm_coexec.layers import Concat, Conv2d, Elementwise, Linear, LocalNorm, Pool, Rearrange, Resize
from tvm_coexec.tuning.workloads import (
    NAMED,
    conv2d_training_layers,
    images_training_layers,
    layers_named,
    resnet18,
    resnet50,
    vgg16,
)

ENTRY = {
    "op": "conv2d",
    "h": 56,
    "w": 56,
    "in_channels": 64,
    "out_channels": 64,
    "kernel": 3,
    "stride": 1,
    "padding": 1,
    "groups": 1,
}


def shapes(layers: list[Conv2d]) -> set[Conv2d]:
    return {replace(layer, epilogue=()) for layer in layers}


@pytest.mark.parametrize("name", NAMED)
def test_a_named_set_has_no_layer_twice(name: str) -> None:
    layers = layers_named(name)
    assert len(layers) == len(set(layers)) > 1


def test_the_networks_have_the_sizes_of_their_papers() -> None:
    assert (len(shapes(resnet18())), len(shapes(resnet50())), len(shapes(vgg16()))) == (11, 23, 9)
    assert {layer.out_h for layer in resnet18()} == {layer.out_h for layer in resnet50()} == {112, 56, 28, 14, 7}
    assert {layer.out_h for layer in vgg16()} == {224, 112, 56, 28, 14}
    assert max(layer.out_channels for layer in resnet50()) == 2048
    assert sum("residual" in layer.epilogue for layer in resnet50()) == 4


def test_vgg_has_the_products_that_are_known_of_it() -> None:
    # the paper's networks repeat the last layer of blocks 3 and 4 once, and that of block 5 twice
    repeats = {256: {56: 2}, 512: {28: 2, 14: 3}}
    flops = 0
    for layer in vgg16():
        same = layer.in_channels == layer.out_channels
        flops += layer.flops * (repeats.get(layer.out_channels, {}).get(layer.out_h, 1) if same else 1)
    assert flops / 2 == pytest.approx(15.35e9, rel=0.01)


def test_no_convolution_is_trained_on_that_comparisons_measure() -> None:
    held_out = shapes([*resnet18(), *resnet50(), *vgg16()])
    layers = list(itertools.islice(conv2d_training_layers(), 1000))
    assert not held_out & shapes(layers)
    assert len(shapes(layers)) > 900
    kernels = {layer.kernel[0] for layer in layers if layer.groups == 1}
    assert {1, 3, 5} <= kernels
    assert any(layer.groups == layer.in_channels for layer in layers)
    assert any(layer.in_channels == 3 for layer in layers)


def test_training_layers_are_the_same_in_every_run() -> None:
    first, second = (list(itertools.islice(conv2d_training_layers(), 20)) for _ in range(2))
    assert first == second


def test_all_layers_of_images_are_trained_on() -> None:
    layers = list(itertools.islice(images_training_layers(), 200))
    assert {type(layer) for layer in layers} == {Pool, Concat, Elementwise, LocalNorm, Rearrange, Resize}
    pools = [layer for layer in layers if isinstance(layer, Pool)]
    assert {layer.kind for layer in pools} == {"average", "max"}
    assert {1, 2, 3} <= {layer.kernel[0] for layer in pools}
    assert any(layer.out_h == 1 for layer in pools)
    assert layers == list(itertools.islice(images_training_layers(), 200))


def test_a_file_may_hold_layers_of_any_kind(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps([ENTRY, {"op": "linear", "m": 1, "k": 64, "n": 64}]))
    assert layers_named(path) == [Conv2d(56, 56, 64, 64, (3, 3), padding=(1, 1, 1, 1)), Linear(1, 64, 64)]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kernel": 99}, "does not fit"), ({"groups": 5}, "5 groups do not divide"), ({"depth": 1}, "cannot read layer")],
)
def test_a_wrong_entry_is_named(change: dict[str, int], message: str, tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps([ENTRY, ENTRY | change]))
    with pytest.raises(FileFormatError, match=f"entry 1: .*{message}"):
        layers_named(path)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'resnet19'.*resnet18, resnet50, vgg16"):
        layers_named("resnet19")


def test_a_model_s_layers_are_those_that_can_be_tuned_each_once(tmp_path: Path) -> None:
    weights = from_array(np.ones((64, 64), np.float32), "weights")
    nodes = [
        helper.make_node("Gemm", ["x", "weights"], ["a"]),
        helper.make_node("Sin", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "weights"], ["y"]),
    ]
    onnx.save(model(nodes, weights), tmp_path / "model.onnx")
    assert layers_named(tmp_path / "model.onnx") == [Linear(3, 64, 64)]
    onnx.save(model([helper.make_node("Sin", ["x"], ["y"])]), tmp_path / "opaque.onnx")
    with pytest.raises(InputError, match=r"no layer of .*opaque\.onnx can be tuned"):
        layers_named(tmp_path / "opaque.onnx")


def model(nodes: list[onnx.NodeProto], *weights: onnx.TensorProto) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3, 64]) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "model", [x], [y], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
