"""Tells which processes hold a lock of a file."""

from __future__ import annotations

from pathlib import Path

_LOCKS = Path("/proc/locks")
"""Where Linux lists the locks of files, a line each: the fifth word is the process, the sixth the device and inode."""


def lockers(path: Path) -> list[str]:
    """The processes that hold locks of a file, as far as this system shows them."""
    try:
        inode, locks = path.stat().st_ino, [line.split() for line in _LOCKS.read_text().splitlines()]
    except OSError:
        return []
    numbers = {
        int(words[4])
        for words in locks
        if len(words) == 8 and words[1] == "POSIX" and words[5].endswith(f":{inode}") and int(words[4]) > 0
    }
    return [_process(number) for number in sorted(numbers)]


def _process(number: int) -> str:
    try:
        return f"process {number} ({Path(f'/proc/{number}/comm').read_text().strip()})"
    except OSError:
        return f"process {number}"
