"""MediaPipe's own operators compute what MediaPipe's descriptions of them say."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flatbuffers import flexbuffers
from reference import evaluate
from tflite_writer import Writer

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.graph import Graph

random = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def graph_of(writer: Writer, inputs: list[int], output: int, folder: Path) -> Graph:
    path = folder / "model.tflite"
    path.write_bytes(writer.finish(inputs, [output]))
    return to_graph(path)


def custom(
    operator: str, shapes: list[tuple[int, ...]], result: tuple[int, ...], folder: Path, **options: Any
) -> Graph:
    """A file of one operator on inputs ``x0``, ``x1`` …"""
    writer = Writer()
    inputs = [writer.tensor(f"x{index}", shape) for index, shape in enumerate(shapes)]
    output = writer.add(operator, inputs, result, custom=flexbuffers.Dumps(options) if options else b"")
    return graph_of(writer, inputs, output, folder)


@pytest.mark.parametrize(("padding", "size"), [(1, 8), (2, 9)])
def test_a_transposed_convolution_with_a_bias(padding: int, size: int, tmp_path: Path) -> None:
    writer = Writer()
    x, weights, bias = writer.tensor("image", (1, 4, 4, 5)), numbers(2, 3, 3, 5), numbers(2)
    operands = [x, writer.constant(weights), writer.constant(bias)]
    options = struct.pack("3i", padding, 2, 2)
    result = writer.add("Convolution2DTransposeBias", operands, (1, size, size, 2), custom=options)
    graph = graph_of(writer, [x], result, tmp_path)
    image = numbers(1, 4, 4, 5)
    whole = np.zeros((9, 9, 2))
    for row, column in np.ndindex(4, 4):
        taps = np.einsum("i,ohwi->hwo", image[0, row, column], weights)
        whole[2 * row : 2 * row + 3, 2 * column : 2 * column + 3] += taps
    (found,) = evaluate(graph, {"image": image}).values()
    np.testing.assert_allclose(found[0], whole[:size, :size] + bias, atol=1e-5)


def crop(landmarks: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """The matrix from the pixels of a crop to places, put together step by step."""
    left, right = (landmarks[options[f"{side}_rotation_idx"], :2] for side in ("left", "right"))
    angle = options["target_rotation_radians"] - math.atan2(right[1] - left[1], right[0] - left[0])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turned = landmarks[options["subset_idxs"], :2] @ turn.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    size = np.array([options["output_width"], options["output_height"]])
    shift, unturn, scale, centre = (np.eye(4) for _ in range(4))
    shift[:2, 3] = turn.T @ ((low + high) / 2)
    unturn[:2, :2] = turn.T
    scale[:2, :2] = np.diag(np.array([options["scale_x"], options["scale_y"]]) * (high - low) / size)
    centre[:2, 3] = -size / 2
    return shift @ unturn @ scale @ centre


def test_a_crop_around_landmarks(tmp_path: Path) -> None:
    options = {
        "left_rotation_idx": 1,
        "right_rotation_idx": 4,
        "subset_idxs": [1, 4, 5, 6, 2],
        "target_rotation_radians": 0.3,
        "output_width": 8,
        "output_height": 6,
        "scale_x": 1.5,
        "scale_y": 2.0,
    }
    graph = custom("Landmarks2TransformMatrix", [(1, 9, 3)], (1, 4, 4), tmp_path, **options)
    landmarks = numbers(1, 9, 3) * 20
    (found,) = evaluate(graph, {"x0": landmarks}).values()
    np.testing.assert_allclose(found[0], crop(landmarks[0].astype(np.float64), options), rtol=1e-4, atol=1e-4)
    assert len(graph.nodes) == 1


@pytest.mark.parametrize("axes", [2, 3])
def test_landmarks_on_a_crop(axes: int, tmp_path: Path) -> None:
    graph = custom("TransformLandmarks", [(1, 7, axes), (1, 4, 4)], (1, 7, axes), tmp_path)
    landmarks, matrix = numbers(1, 7, axes), numbers(1, 4, 4)
    expected = landmarks.copy()
    expected[0, :, :2] = landmarks[0, :, :2] @ matrix[0, :2, :2].T + matrix[0, :2, 3]
    (found,) = evaluate(graph, {"x0": landmarks, "x1": matrix}).values()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_pixels_of_a_crop(tmp_path: Path) -> None:
    """Outside of the image they are 0, and on its edge they are the edge's."""
    size = {"output_height": 4, "output_width": 5}
    graph = custom("TransformTensorBilinear", [(1, 6, 7, 3), (1, 4, 4)], (1, 4, 5, 3), tmp_path, **size)
    image, matrix = numbers(1, 6, 7, 3), np.eye(4, dtype=np.float32)[None]
    matrix[0, :2] = [[1.3, 0.4, 0, -0.6], [-0.3, 1.2, 0, 1.1]]
    expected = np.zeros((4, 5, 3))
    for row, column in np.ndindex(4, 5):
        x, y = matrix[0, :2].astype(np.float64) @ [column + 0.5, row + 0.5, 0, 1] - 0.5
        if 0 <= x <= 6 and 0 <= y <= 5:
            left, upper = int(x), int(y)
            corners = image[0, upper : upper + 2, left : left + 2]
            sides = np.array([1 - (y - upper), y - upper])[: len(corners)]
            ends = np.array([1 - (x - left), x - left])[: corners.shape[1]]
            expected[row, column] = np.einsum("i,j,ijc->c", sides, ends, corners)
    (found,) = evaluate(graph, {"x0": image, "x1": matrix}).values()
    assert 0 < (expected == 0).all(axis=-1).sum() < 20
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_the_first_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^TransformLandmarks \(custom operator .* known is its version 2 of \[1, n,"):
        custom("TransformLandmarks", [(1, 1, 1, 14), (1, 4, 4)], (1, 1, 1, 14), tmp_path)


def test_unknown_operators_are_named(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("image", (1, 4, 4, 5))
    hidden = writer.add("Sharpen", [x], (1, 4, 4, 5), custom=b"")
    result = writer.add("Blur", [hidden], (1, 4, 4, 5), custom=b"")
    with pytest.raises(
        ModelError, match=r"^Sharpen \(custom operator 'sharpen1'\), Blur \(custom operator 'blur2'\): no"
    ):
        graph_of(writer, [x], result, tmp_path)
