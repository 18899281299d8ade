"""Files that are written whole or not at all, whoever else writes to the same place, and read if they are files."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial")
_OLD_S = 10.0
"""What is younger may not be locked yet by who has just made it."""


@contextmanager
def whole_file(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` at the end; if anything fails before, what was there stays.

    What is there but no regular file, such as ``/dev/null``, is written to as it is.

    Parameters
    ----------
    durable
        Whether the content has to be on the disk before it takes its place: a loss of power then leaves the old file
        or the new one. It takes milliseconds.
    """
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        with place.open("wb") as file:
            yield file
        return
    partial = _partial_in(place.parent)
    try:
        with partial.open("xb") as file:
            _lock(file.fileno())
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        partial.replace(place)
    except BaseException as error:
        with suppress(OSError):  # where nothing can be written, nothing was
            partial.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None  # by the name that the user knows
        raise
    if durable:
        _settle(place.parent)


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Fill a folder that takes the place of ``path``, which is empty or not there; if anything fails, that stays so.

    A folder that is there is not replaced: a shell may stand in it, or a disk be mounted there.
    """
    place = Path(os.path.realpath(path))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial_in(place if place.is_dir() else place.parent)
        partial.mkdir(0o700)
        held = os.open(partial, os.O_RDONLY)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None  # by the name that the user knows
    try:
        _lock(held)
        yield partial
        if partial.parent == place:
            _move_up(partial)
        else:
            partial.chmod(0o755)
            partial.replace(place)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            named = [str(name) for name in (error.filename, error.filename2) if name]  # of a copy or a move, both ends
            if not named or any(name.startswith(str(partial)) for name in named):
                raise OSError(error.errno, error.strerror, os.fspath(path)) from None
        raise
    finally:
        os.close(held)


def is_vacant(folder: Path) -> bool:
    """Whether nothing is in a folder but what processes have not written to the end, or is no folder there."""
    return not folder.is_dir() or all(_PARTIAL.fullmatch(entry.name) for entry in folder.iterdir())


def _partial_in(folder: Path) -> Path:
    """A name of its own for what is being written, since others may write there, too.

    What was left there by processes that were killed is removed: whoever still writes holds a lock.
    """
    with suppress(OSError):
        for entry in folder.iterdir():
            if _PARTIAL.fullmatch(entry.name):
                remove_unless_held(entry)
    return folder / f".{secrets.token_hex(8)}.partial"


def remove_unless_held(partial: Path) -> None:
    """Remove what a process that was killed has not written to the end; whoever still writes holds a lock of it."""
    with suppress(OSError):
        descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            age_s = abs(time.time() - os.fstat(descriptor).st_mtime)  # a clock that was set back has seen no future
            if age_s < _OLD_S or not _lock(descriptor):
                return
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock what is open, until it is closed or its process ends; whether that was possible."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _move_up(partial: Path) -> None:
    """Move what a folder holds into the one that it lies in, which holds nothing else; all of it or nothing."""
    place = partial.parent
    if not is_vacant(place):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), os.fspath(place))
    moved: list[Path] = []
    try:
        for entry in list(partial.iterdir()):
            moved.append(entry.rename(place / entry.name))
        partial.rmdir()
    except BaseException:
        for entry in moved:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        raise


def write_json(path: str | os.PathLike[str], values: Any) -> None:
    """Write a file of JSON, whole or not at all."""
    with whole_file(path) as file:
        file.write(f"{json.dumps(values, indent=1, allow_nan=False)}\n".encode())


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to be read; an ``OSError`` where it is none: pipes are waited for, and ``/dev/zero`` has no end."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return path.open("rb")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read a file whole; see :func:`open_file`."""
    with open_file(path) as file:
        return file.read()


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a file of JSON holds; an ``OSError`` where it cannot be read, a ``ValueError`` where it is no JSON."""
    try:
        return json.loads(read_file(path).decode(), parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("its lists are nested too deeply") from None


def _finite(text: str) -> float:
    """Read a number, but none that JSON cannot have, or that is too large for a float."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


def _settle(folder: Path) -> None:
    """See that a folder's entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
