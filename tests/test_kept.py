"""Graphs of files that were read before: the same graph and the same words, and nothing kept that has changed."""

import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_builder import OnnxBuilder, linear

from tvm_coexec import frontends
from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import kept, to_graph
from tvm_coexec.graph import Graph


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def saved(path: Path, *, channels: int = 96, seed: int = 0) -> Path:
    builder = OnnxBuilder(x=(5, 64))
    builder.random = np.random.default_rng(seed)
    path.write_bytes(builder.model(linear(builder, "x", 64, channels)).SerializeToString())
    return path


def same(one: Graph, other: Graph) -> bool:
    pairs = list(zip(one.nodes, other.nodes, strict=True))
    return (one.tensors, one.inputs, one.outputs) == (other.tensors, other.inputs, other.outputs) and all(
        (a.name, a.layer, a.reads, a.output) == (b.name, b.layer, b.reads, b.output)
        and a.params.keys() == b.params.keys()
        and all(np.array_equal(a.params[name], b.params[name]) for name in a.params)
        for a, b in pairs
    )


def never(*_: object) -> None:
    raise AssertionError("the file is read again")


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "model.onnx")
    first = to_graph(path)
    elsewhere = tmp_path / "copy.onnx"
    elsewhere.write_bytes(path.read_bytes())
    monkeypatch.setattr(frontends, "_read_onnx", never)
    assert same(first, to_graph(path)) and same(first, to_graph(elsewhere))
    with pytest.raises(AssertionError, match="read again"):
        to_graph(saved(path, seed=1))


def test_other_weights_shapes_and_front_ends_are_other_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "model.onnx")
    keys = {kept.key_of(path, {}, {}), kept.key_of(path, {"x": (5, 64)}, {})}
    keys |= {kept.key_of(path, {}, {"x": value}) for value in (2, 3, 3.0, [3, 3])}
    keys |= {kept.key_of(saved(path, channels=64), {}, {})}
    monkeypatch.setattr(kept, "_reader_key", lambda: "of another release")
    assert len({*keys, kept.key_of(path, {}, {})} - {None}) == 8


def test_a_file_read_before_needs_neither_tvm_nor_the_package_of_its_format(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.onnx")
    script = (
        "import sys; from tvm_coexec.frontends import to_graph; to_graph(sys.argv[1]);"
        "print(sorted({'tvm', 'onnx'} & sys.modules.keys()))"
    )
    told = [subprocess.check_output([sys.executable, "-c", script, path], text=True).strip() for _ in range(2)]
    assert told == ["['onnx', 'tvm']", "[]"]


def test_shapes_count_whatever_holds_them(tmp_path: Path) -> None:
    class Shapes(dict[str, tuple[int, ...]]):
        def __repr__(self) -> str:
            return "shapes"

    builder = OnnxBuilder(x=("rows", 64))
    path = tmp_path / "model.onnx"
    path.write_bytes(builder.model(linear(builder, "x", 64, 96)).SerializeToString())
    assert [to_graph(path, Shapes(x=(rows, 64))).tensors["x"].shape for rows in (3, 4)] == [(3, 64), (4, 64)]
    assert kept.key_of(path, {"x": [3, 64]}, {}) == kept.key_of(path, Shapes(x=(3, 64)), {})


def widened(folder: Path) -> Path:
    """A model in float16, of which the user is told that it is computed in float32."""
    builder = OnnxBuilder(x=(5, 64))
    model = builder.model(linear(builder, "x", 64, 96))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for constant in model.graph.initializer:
        constant.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(constant).astype(np.float16), constant.name)
        )
    path = folder / "half.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("is_ignored_first", [False, True])
def test_the_user_is_told_the_same_again(is_ignored_first: bool, tmp_path: Path) -> None:
    path = widened(tmp_path)
    if is_ignored_first:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            to_graph(path)
    heard = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            to_graph(path)
        heard.append([str(one.message) for one in told])
    assert heard[0] == heard[1] and len(heard[0]) == 1 and "float32" in heard[0][0]


def test_a_cache_that_cannot_be_used_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "model.onnx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    with pytest.warns(UserWarning, match="XDG_CACHE_HOME") as told:
        assert same(to_graph(path), to_graph(path))
    assert len(told) == 1


def test_threads_read_in_turn(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{seed}.onnx", seed=seed) for seed in range(6)]
    expected = [to_graph(onnx.load(path)) for path in paths]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(len(paths)) as pool:
            assert all(map(same, pool.map(to_graph, paths), expected))
        warnings.warn("as before", stacklevel=1)
    assert [str(one.message) for one in told] == ["as before"]


def test_weights_in_other_files_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = onnx.load(saved(path))
    onnx.save_model(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    first = to_graph(path)
    content = bytearray((tmp_path / "weights").read_bytes())
    content[:4] = np.float32(7).tobytes()
    (tmp_path / "weights").write_bytes(bytes(content))
    assert not same(first, to_graph(path))


def test_a_file_that_changes_as_it_is_read_is_not_kept(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.onnx")
    read = frontends.read_model(path)
    saved(path, seed=1)
    first = read.to_graph()
    assert not same(first, to_graph(path))


def test_what_is_refused_is_refused_again(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.onnx")
    to_graph(path)
    for _ in range(2):
        with pytest.raises(ModelError, match="'y'"):
            to_graph(path, {"y": (1, 2)})
