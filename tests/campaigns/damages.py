"""How a file may be damaged: by flipped bits, by what is cut out, repeated or overwritten."""

from __future__ import annotations

import numpy as np


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
