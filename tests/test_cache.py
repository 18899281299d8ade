"""What is kept on disk: damage is noticed, old entries make room, processes share it, and it may be missing."""

import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_coexec import cache as cache_module
from tvm_coexec.cache import Cache
from tvm_coexec.files import whole_file


def only_file(folder: Path) -> Path:
    (path,) = (path for path in folder.rglob("*") if path.is_file())
    return path


@given(key=st.text(alphabet=st.characters(codec="utf-8")), content=st.binary(max_size=200), data=st.data())
def test_no_flipped_bit_goes_unnoticed(
    key: str, content: bytes, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache"), 1 << 20)
    cache.put(key, content)
    assert cache.get(key) == content
    path = only_file(cache.folder)
    whole = path.read_bytes()
    place = data.draw(st.integers(0, 8 * len(whole) - 1))
    damaged = bytearray(whole)
    damaged[place // 8] ^= 1 << place % 8
    path.write_bytes(bytes(damaged))
    assert cache.get(key) is None
    cache.put(key, content)
    assert cache.get(key) == content


def test_an_entry_that_lies_under_another_key_is_not_taken(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 20)
    cache.put("a", b"content")
    first = only_file(tmp_path)
    cache.put("b", b"other")
    for path in tmp_path.rglob("*"):
        if path.is_file() and path != first:
            path.write_bytes(first.read_bytes())
    assert (cache.get("a"), cache.get("b")) == (b"content", None)


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    filling = Cache(tmp_path, 1 << 20)
    for number in range(10):
        filling.put(str(number), bytes(1000))
        os.utime(filling._path(str(number)), (number, number))
    assert filling.get("0") == bytes(1000), "which counts as a use"
    (tmp_path / "ab").mkdir(exist_ok=True)
    left_over = tmp_path / "ab" / ".0123456789abcdef.partial"
    left_over.touch()
    os.utime(left_over, (0, 0))
    small = Cache(tmp_path, 6000)
    small.put("new", bytes(1000))
    kept = [number for number in range(10) if small._path(str(number)).exists()]
    assert kept == [0, 8, 9] and small.get("new") == bytes(1000)
    assert not left_over.exists()


def test_what_was_kept_while_a_clock_was_wrong_makes_room_first(tmp_path: Path) -> None:
    cache, years_s = Cache(tmp_path, 1 << 20), 1e8
    for name in ("never used again", "used"):
        cache.put(name, bytes(1000))
        os.utime(cache._path(name), (time.time() + years_s, time.time() + years_s))
    assert cache.get("used") == bytes(1000)
    small = Cache(tmp_path, 3000)
    small.put("new", bytes(1000))
    assert [small.get(name) is None for name in ("never used again", "used", "new")] == [True, False, False]


def test_what_another_process_is_writing_is_not_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 20)
    cache.put("kept", b"content")
    (tmp_path / "ab").mkdir(exist_ok=True)
    with whole_file(tmp_path / "ab" / "entry") as file:
        file.write(b"half")
        for partial in (tmp_path / "ab").iterdir():
            os.utime(partial, (0, 0))
        cache._evict()
    assert (tmp_path / "ab" / "entry").read_bytes() == b"half"


def test_a_process_keeps_the_bound_too(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 6000)
    for number in range(12):
        cache.put(str(number), bytes(1000))
    assert sum(size for _, size, _ in cache._files()) <= 6000 and cache.get("11") == bytes(1000)


def test_what_would_push_out_all_the_rest_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 6000)
    cache.put("small", b"content")
    cache.put("large", bytes(5000))
    assert (cache.get("small"), cache.get("large")) == (b"content", None)


def test_what_another_user_wrote_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is run as code, and whoever may write in a folder may put it there."""
    cache = Cache(tmp_path, 1 << 20)
    cache.put("key", b"content")
    monkeypatch.setattr(cache_module, "_ROOT", -1)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert cache.get("key") is None
    assert cache.get("key") == b"content"


def test_an_entry_that_is_no_file_is_left_alone(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 20)
    path = cache._path("key")
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.warns(UserWarning, match="no regular file"):
        assert cache.get("key") is None
    cache.put("key", b"content")
    assert path.is_fifo()


@pytest.mark.parametrize("place", ["/dev/null/cache", "/proc/cache"])
def test_a_folder_that_cannot_be_used_costs_one_warning(place: str) -> None:
    cache = Cache(Path(place), 1 << 20)
    with pytest.warns(UserWarning, match="XDG_CACHE_HOME") as told:
        for _ in range(3):
            cache.put("key", b"content")
            assert cache.get("key") is None
    assert len(told) == 1


def test_a_full_disk_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: object) -> None:
        raise OSError(28, "No space left on device")

    cache = Cache(tmp_path, 1 << 20)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        cache.put("key", b"content")
    assert cache.get("key") is None and not any(path.is_file() for path in tmp_path.rglob("*"))


def _put_and_get(folder: Path, seed: int) -> int:
    """How many of what is found is something else."""
    cache, wrong = Cache(folder, 20_000), 0
    for turn in range(100):
        key = str((turn * 7 + seed) % 10)
        cache.put(key, key.encode() * 3000)
        wrong += cache.get(str(turn % 10)) not in (None, str(turn % 10).encode() * 3000)
    return wrong


@pytest.mark.slow
def test_processes_share_a_cache(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(pool.map(_put_and_get, [tmp_path] * 3, range(3))) == [0, 0, 0]
    assert not list(tmp_path.rglob("*.partial"))
