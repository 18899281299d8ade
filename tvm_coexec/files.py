"""Files that are written whole or not at all, whoever else writes to the same place."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
    partial = place.with_name(f".{secrets.token_hex(8)}.partial")  # a name of its own: others may write, too
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        partial.replace(place)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None  # by the name that the user knows
        raise
    if durable:
        _settle(place.parent)


def _settle(folder: Path) -> None:
    """See that a folder's entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
