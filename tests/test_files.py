"""Files are written whole or not at all: whoever else writes there, whatever fails, whatever is there."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tvm_coexec.files import is_vacant, read_json, whole_file, whole_folder


@pytest.mark.parametrize("durable", [True, False])
def test_writers_of_one_file_do_not_mix(durable: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([number]) * 300_000 for number in range(3)]

    def write(content: bytes) -> None:
        for _ in range(10):
            with whole_file(path, durable=durable) as file:
                for start in range(0, len(content), 100_000):
                    file.write(content[start : start + 100_000])
            assert path.read_bytes() in contents

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [b"old", None])
def test_what_fails_leaves_what_was_there(old: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    full = OSError(28, "No space left on device")
    for error, message in ((full, f"No space left on device: '{path}'"), (KeyboardInterrupt(), None)):
        with pytest.raises(type(error), match=message), whole_file(path) as file:
            file.write(b"new")
            raise error
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_link_stays_and_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    target, link, long = tmp_path / "target", tmp_path / "link", tmp_path / ("x" * 255)
    link.symlink_to(target)
    for path in (link, long, Path("/dev/null")):
        with whole_file(path) as file:
            file.write(b"new")
    assert link.is_symlink() and target.read_bytes() == long.read_bytes() == b"new"
    assert Path("/dev/null").is_char_device()


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    with whole_file(tmp_path / "new") as file:
        file.write(b"new")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", '{"a": 1e999}', "-1e400"])
def test_numbers_that_are_not_finite_are_no_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="is no finite number"):
        read_json(tmp_path / "x.json")


KILLED = """
import os, sys
from pathlib import Path
from tvm_coexec.files import whole_file, whole_folder
with whole_folder(sys.argv[1]), whole_file(Path(sys.argv[1]) / "file") as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_wrote_is_removed_by_the_next_and_what_one_writes_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        partials = list(tmp_path.iterdir())
        for partial in partials:
            os.utime(partial, (time.time() - 1000, time.time() - 1000))
        with whole_file(tmp_path / "other") as file:
            file.write(b"whole")
        assert len(partials) == 2 and {*partials, tmp_path / "other"} == set(tmp_path.iterdir())
        (tmp_path / "other").unlink()
        process.send_signal(signal.SIGKILL)
    assert is_vacant(tmp_path)
    with whole_folder(tmp_path) as folder:
        (folder / "new").touch()
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]
