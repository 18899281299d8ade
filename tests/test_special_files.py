"""What is no file, or no file of its kind, is refused in a line wherever a file is read."""

import errno
import json
import os
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_tuning import FACTS

from tvm_coexec import cli
from tvm_coexec.api import facts_of
from tvm_coexec.cli.run import _load
from tvm_coexec.errors import CoexecError, InputError
from tvm_coexec.frontends import to_graph
from tvm_coexec.module.package import Package
from tvm_coexec.planning.plan import Plan
from tvm_coexec.prediction.predictors import LatencyPredictor
from tvm_coexec.profile import Profile
from tvm_coexec.tuning.workloads import layers_named


def _profile_of(path: Path) -> None:
    folder = path.with_name("profile")
    folder.mkdir()
    path.rename(folder / "profile.json")
    Profile.open(folder)


TYPES = {"x": (np.dtype(np.float32), (4,))}
"""The inputs of a module, by name."""

READERS: dict[str, Callable[[Path], object]] = {
    "module": Package.read,
    "plan": Plan.read,
    "layers": layers_named,
    "facts": facts_of,
    "input": lambda path: _load(str(path), "x", TYPES),
    "predictor": LatencyPredictor.load,
    "profile": _profile_of,
    "ONNX": to_graph,
}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def circle(path: Path) -> None:
    path.symlink_to(path)


def nested(path: Path) -> None:
    path.write_text("[" * 200_000)


def empty(path: Path) -> None:
    path.touch()


def random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(3000))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("make", [pipe, endless, circle, nested, empty, random_bytes])
def test_what_is_no_file_of_its_kind_is_refused_in_a_line(
    reader: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / ("file.json" if reader in ("layers", "profile") else "file.onnx")
    make(path)
    with pytest.raises(CoexecError, match=r"file|layers|profile|no ONNX model") as caught:
        READERS[reader](path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 4), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        b"{'descr': 'nothing', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': ('<f4', ((((((((",
        b"[" * 5000,
        b"\xff\xfe",
        b"{'descr': '<f4', 'fortran_order': 3, 'shape': 4}",
    ],
)
def test_a_broken_header_of_an_input_is_refused_in_a_line(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    told = r"cannot read .*x\.npy as \.npy or \.npz \(.*\); save it anew|must be a float32 array of shape \(4,\), not "
    with pytest.raises(CoexecError, match=told) as caught:
        _load(str(path), "x", TYPES)
    assert "\n" not in str(caught.value)


def bomb(path: Path) -> None:
    """An archive of 64 kilobytes with an array of 64 megabytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as entry:
        np.lib.format.write_array_header_1_0(entry, {"descr": "<f4", "fortran_order": False, "shape": (1 << 24,)})
        for _ in range(1 << 6):
            entry.write(bytes(1 << 20))


def sparse(path: Path) -> None:
    """An array of four gigabytes of which nothing is on the disk."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 30,)})
        file.truncate((1 << 32) + 128)


def endless_header(path: Path) -> None:
    """An archive with an array whose header is of 64 megabytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as entry:
        entry.write(b"\x93NUMPY\x02\x00" + (1 << 26).to_bytes(4, "little"))
        for _ in range(1 << 6):
            entry.write(b" " * (1 << 20))


def nameless(path: Path) -> None:
    np.savez(path.open("wb"), y=np.zeros(4, np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bomb, r"must be a float32 array of shape \(4,\), not float32 \(16777216,\)"),
        (sparse, r"must be a float32 array of shape \(4,\), not float32 \(1073741824,\)"),
        (endless_header, r"cannot read .* \(EOF: reading array header"),
        (nameless, r"input 'y' is unknown; the inputs are x$"),
    ],
)
def test_an_input_that_is_another_is_refused_before_its_data_are_read(
    make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "x")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message):
            _load(str(tmp_path / "x"), "x", TYPES)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, np.save])
def test_an_input_is_read_as_it_was_saved(save: Callable[..., None], tmp_path: Path) -> None:
    x = np.arange(4, dtype=np.float32)
    with (tmp_path / "x").open("wb") as file:
        save(file, **({"arr": x} if save is np.save else {"x": x}))
    np.testing.assert_array_equal(_load(str(tmp_path / "x"), "x", TYPES)["x"], x, strict=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read .*x\.npy \(No such file or directory\); name a \.npy or \.npz file"),
        (b"not an array", r"cannot read .*x\.npy as \.npy or \.npz \(it begins as neither does\); save it anew"),
    ],
)
def test_an_input_that_is_no_array_is_not_to_be_unpickled(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CoexecError, match=message):
        _load(str(path), "x", TYPES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "m.coexec", "--cpu-cores", "0-9999999999"], "no machine has a core 9999999999"),
        (["run", ""], "'' is no file; name a module"),
        (["build", "m.onnx", "--out", "z.coexec", "--split", "", "--device", "pocl"], "split '' is none of"),
        (["plan", "m.onnx", "--profile", "m.onnx"], "no profile at m.onnx; name the folder that was tuned"),
        (["tune", "--out", "p", "--minutes", "nan"], "minutes must be positive, 100000 at most, got nan"),
        (["run", "m.coexec", "--benchmark", "99999999999999999999"], "is no whole number from 1 to 1000000"),
        (["run", "m.coexec", "--benchmark", "2000000"], "is no whole number from 1 to 1000000"),
        (["report", "m.coexec", "--out", "r.html", "--repeats", "9" * 5000], "is no whole number from 1 to 1000000"),
        (["build", "m.onnx", "--out", "z.coexec", "--shape", f"x={'9' * 5000},64"], "write an input's name and sizes"),
        (["bench", "m.coexec", "--picture", "no/p.png"], "--picture no/p.png: there is no directory"),
        (["devices", "--facts", "."], "--facts .: it is a directory"),
        (["export", "m.coexec", "--c-project", "m.onnx"], "m.onnx is a file, and a project a folder"),
        (["build", "m.onnx", "--out", "z.coexec", "--target", "no"], "cannot read the facts 'no' (No such file"),
        (["tune", "--out", "p", "--minutes", "1e300"], "minutes must be positive, 100000 at most, got 1e+300"),
    ],
)
def test_absurd_calls_are_refused_in_a_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from onnx_builder import OnnxBuilder, linear

    monkeypatch.chdir(tmp_path)
    builder = OnnxBuilder(x=(9, 64))
    Path("m.onnx").write_bytes(builder.model(linear(builder, "x", 64, 96)).SerializeToString())
    try:
        status = cli.main(arguments)
    except SystemExit as exit_:
        status = exit_.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "free some space there"), (errno.ENOENT, "check the path, and who may")]
)
def test_a_file_that_the_system_refuses_is_named_with_a_remedy(number: int, remedy: str) -> None:
    told = cli.one_line(OSError(number, os.strerror(number), "/proc/x"))
    assert told.startswith(f"/proc/x cannot be used ({os.strerror(number)}); {remedy}")


def test_a_lack_of_temporary_folders_is_told_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/no"])
    with pytest.raises(FileNotFoundError) as caught:
        tempfile._get_default_tempdir()  # type: ignore[attr-defined]
    assert cli.one_line(caught.value).endswith(
        "; free some space there, or name a folder that can be written to by TMPDIR"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("cpu_features", None),
            ("cpu_features", [None]),
            ("device_type", []),
            ("compute_units", "x"),
            ("machine", 1),
        ),
        *(("clusters", None), ("clusters", [None]), ("clusters", [{"cores": [0]}]), ("clusters", [{"name": "a core"}])),
    ],
)
def test_facts_of_a_wrong_kind_are_refused_in_a_line(name: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({**FACTS, "label": "a device", name: value}))
    for target in (path, {**FACTS, "label": "a device", name: value}):
        with pytest.raises(CoexecError, match=f"has wrong values of {name}; write it anew by `tvm-coexec devices"):
            facts_of(target)


def test_facts_of_another_kind_of_cpu_are_refused_by_their_owners_name() -> None:
    with pytest.raises(CoexecError, match="the target names a CPU of kind 'x8686_64', for which nothing is built"):
        facts_of({**FACTS, "label": "a device", "machine": "x8686_64"})
