"""What a module file says of its tensors, and that it reads back as it was written."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tvm_coexec.errors import FileFormatError
from tvm_coexec.layers import ImageLayout, Linear, layer_to_json
from tvm_coexec.module.manifest import ArgumentSpec, HalfSpec, LaunchSpec, Manifest, StateSpec, StepSpec
from tvm_coexec.module.tensors import Source, TensorSpec

IMAGE = TensorSpec.of_size("x", (2, 3, 5, 40), ImageLayout((1, 2)))
NARROW = TensorSpec.of_size("n", (1, 4, 4, 3), ImageLayout((1, 1), width=3))
ROWS = TensorSpec("y", (3, 40))
PART = TensorSpec.of_size("p", (2, 3, 5, 8), ImageLayout((1, 2), False, 2, 1))


def step(seed: int | None, source: Source) -> StepSpec:
    launches = (
        LaunchSpec(
            "first",
            (ArgumentSpec("input", Source.tensor("y"), (3, 64)), ArgumentSpec("s", Source.scratch("gpu", "s"), (7,))),
        ),
        LaunchSpec("second", (ArgumentSpec("weights", source, (2, 3)),), (4, 1), (8, 2), 1),
    )
    layer = layer_to_json(Linear(3, 40, 40))
    return StepSpec("a", layer, 2, "channels", 1, ("y",), "y", None, HalfSpec({"m": 4}, launches), seed)


def manifest(*steps: StepSpec) -> Manifest:
    return Manifest({"name": "d"}, (IMAGE, NARROW, ROWS, PART), (), ("y",), ("y",), steps, {})


@pytest.mark.parametrize(("tensor", "elements"), [(IMAGE, 2 * 5 * 9 * 64), (NARROW, 6 * 6 * 3), (ROWS, 3 * 64)])
def test_a_view_covers_the_elements_and_leaves_halo_and_padding_alone(tensor: TensorSpec, elements: int) -> None:
    assert tensor.memory_rows * tensor.row_elements == elements
    memory = np.zeros(elements + 5, np.float32)
    view = tensor.view(memory)
    assert view.shape == tensor.shape
    view[:] = 1
    assert memory.sum() == np.prod(tensor.shape)
    assert not memory[:elements].reshape(-1, tensor.row_elements)[:, tensor.channels :].any()


def test_a_part_of_an_image_covers_its_own_channels() -> None:
    sliced = TensorSpec("p", (2, 3, 5, 40), 1, ImageLayout((1, 2), None, 5, 2), (2, 3, 5, 40), parents=("x",))
    memory = np.zeros(sliced.memory_words, np.float32)
    sliced.view(memory)[:] = 1
    parent = TensorSpec.of_size("x", (2, 3, 5, 136), ImageLayout((1, 2)))
    assert parent.memory_words == sliced.memory_words == memory.size
    assert not parent.view(memory)[..., :64].any() and not parent.view(memory)[..., 104:].any()
    assert parent.view(memory)[..., 64:104].all()
    assert (sliced.own_bytes, parent.own_bytes) == ((256, 512), (0, 640))


def test_a_manifest_reads_back_as_it_was_written() -> None:
    written = manifest(step(1, Source.constant("a", "weights")))
    assert Manifest.from_json(json.loads(written.to_text())) == written


def test_what_no_file_holds_must_follow_from_a_seed() -> None:
    fields = json.loads(manifest(step(None, Source.constant("a", "weights"))).to_text())
    with pytest.raises(FileFormatError, match=r"names the weights of 'a', which it does not hold"):
        Manifest.from_json(json.loads(json.dumps(fields)))


@pytest.mark.parametrize("size", [2**45, 2**62, 2**70])
def test_a_tensor_that_no_memory_holds_is_damage(size: int) -> None:
    fields = json.loads(manifest(step(1, Source.constant("a", "weights"))).to_text())
    fields["tensors"][2]["shape"] = [8, size]
    with pytest.raises(FileFormatError, match=r"damaged \(no memory holds '.*' of shape"):
        Manifest.from_json(fields)


@pytest.mark.parametrize(
    "damage",
    [{"input": "x"}, {"output": "z"}, {"initial": [1.0, 2.0]}, {"initial": ["1"]}, {"initial": []}, {"initial": 3}],
)
def test_states_that_are_none_are_damage(damage: dict[str, Any]) -> None:
    initial = np.arange(120, dtype=np.float32).reshape(ROWS.shape)
    written = replace(manifest(step(1, Source.constant("a", "weights"))), states=(StateSpec.of("y", "y", initial),))
    fields = json.loads(written.to_text())
    np.testing.assert_array_equal(Manifest.from_json(fields).states[0].first(ROWS.shape, "float32"), initial)
    fields["states"][0] |= damage
    with pytest.raises(FileFormatError, match="damaged"):
        Manifest.from_json(fields)
