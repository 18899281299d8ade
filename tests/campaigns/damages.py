"""How a file may be damaged, by flipped bits, by what is cut out, repeated or overwritten, and how it is to be read."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from outcomes import Outcome

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph

MOST_LINES = 3


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """The content, damaged in one to three places."""
    data = bytearray(content)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(0, len(data)))
        length = int(random.integers(1, 17))
        kind = random.integers(0, 6)
        if kind < 2:
            data[place] ^= 1 << int(random.integers(0, 8))
        elif kind == 2:
            data[place : place + length] = random.bytes(length)
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        else:
            del data[place:]
        if not data:
            return b""
    return bytes(data)


def read_damaged(content: bytes, suffix: str, random: np.random.Generator) -> Outcome:
    """Damage a model's file; whether it is then read, or refused in three lines at most."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        path.write_bytes(damaged(content, random))
        try:
            to_graph(path)
        except ModelError as error:
            lines = len(str(error).splitlines())
            return Outcome("right") if lines <= MOST_LINES else Outcome("raised", f"an error of {lines} lines: {error}")
    return Outcome("right")
