"""Bytes that are kept on disk under a key. A disk may fail, and processes share it: what is damaged is not found."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from tvm_coexec.files import open_file, remove_unless_held, whole_file

_CHECKSUM_BYTES = hashlib.sha256().digest_size
_SHARE_BETWEEN_EVICTIONS = 0.01
"""Share of the bound that is put before a cache is looked at again."""

_KEPT_SHARE = 0.8
"""Share of the bound that is left when a cache held more."""
_ROOT = 0
"""The user who may read and write all anyway."""

_FRESH_S = 3600.0
"""An entry that was used so recently is not marked as used again."""


def user_cache(room: str, most_bytes: int) -> Cache:
    """What is kept in a room of the user's cache, one for a process: it warns once."""
    return _cache_in(Path(platformdirs.user_cache_path("tvm-coexec")) / room, most_bytes)


@functools.cache
def _cache_in(folder: Path, most_bytes: int) -> Cache:
    return Cache(folder, most_bytes)


def digest_of_sources(versions: Iterable[str], places: Iterable[str]) -> str:
    """Digest versions of packages and the text of Python files, named or in folders, for keys of what they make."""
    digest = hashlib.sha256("\n".join(versions).encode())
    for place in map(Path, places):
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def digest_of(key: str) -> str:
    """Make a short name for a key."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


@dataclass
class Cache:
    """A folder of entries, each with the checksum of its key and content.

    A folder that cannot be used costs time, and a warning.

    Parameters
    ----------
    most_bytes
        What is kept at most: entries that were not used for longest make room.
    """

    folder: Path
    most_bytes: int
    _unseen_bytes: float = math.inf
    _has_warned: bool = False

    def get(self, key: str) -> bytes | None:
        """What was put under the key; None if there is nothing, or something else."""
        path = self._path(key)
        try:
            with open_file(path) as file:
                if os.fstat(file.fileno()).st_uid not in (os.geteuid(), _ROOT):
                    return None  # what is kept is run as code, and a folder may let others write
                checksum, content = file.read(_CHECKSUM_BYTES), file.read()
            if abs(time.time() - path.stat().st_mtime) > _FRESH_S:
                os.utime(path)  # the age by which entries are evicted
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
            return None
        return content if checksum == _checksum(key, content) else None

    def put(self, key: str, content: bytes) -> None:
        """Keep something under a key, in the place of what may be there; not what would push out all the rest."""
        if len(content) > _KEPT_SHARE * self.most_bytes:
            return
        path = self._path(key)
        if path.exists() and not path.is_file():
            return  # which a pipe, for one, would wait for ever with
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path, durable=False) as file:  # what a loss of power leaves of it has another checksum
                file.write(_checksum(key, content))
                file.write(content)
            self._unseen_bytes += len(content)
            if self._unseen_bytes > _SHARE_BETWEEN_EVICTIONS * self.most_bytes:
                self._evict()
                self._unseen_bytes = 0
        except OSError as error:
            self._warn(error)

    def _path(self, key: str) -> Path:
        digest = digest_of(key)
        return self.folder / digest[-2:] / digest

    def _evict(self) -> None:
        """Delete what was not used for longest, if there is too much, and what was never finished."""
        latest = time.time() + _FRESH_S
        # what bears a later time was kept while a clock was wrong, and would outlast all else
        found = sorted(
            (used_at if used_at < latest else -math.inf, size, path) for used_at, size, path in self._files()
        )
        too_many_bytes = sum(size for _, size, _ in found) - self.most_bytes
        if too_many_bytes > 0:
            too_many_bytes += int((1 - _KEPT_SHARE) * self.most_bytes)
        for _, size, path in found:
            if path.suffix == ".partial":
                remove_unless_held(path)
            elif too_many_bytes > 0:
                with suppress(OSError):  # another process may have deleted it
                    path.unlink()
                    too_many_bytes -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was last used, its size, and where it is."""
        for path in self.folder.glob("*/*"):
            with suppress(OSError):
                facts = path.stat()
                yield facts.st_mtime, facts.st_size, path

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"what was read or compiled cannot be kept in {self.folder} ({error.strerror or error}), so that every "
                "build takes longer; let XDG_CACHE_HOME name a folder that can be written",
                stacklevel=2,
            )


def _checksum(key: str, content: bytes) -> bytes:
    digest = hashlib.sha256(hashlib.sha256(key.encode()).digest())
    digest.update(content)  # which may be large, and is not copied
    return digest.digest()
