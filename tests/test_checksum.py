"""The C library's checksums are zlib's, whatever the length, the alignment and what came before."""

import ctypes
import zlib

import numpy as np
from c_internals import internals

LENGTHS = [*range(300), 1 << 12, (1 << 18) - 1, (1 << 20) + 77]


def crc32_of(crc: int, data: np.ndarray) -> int:
    function = internals().crc32_of
    function.restype, function.argtypes = ctypes.c_uint32, (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)
    return int(function(crc, data.ctypes.data, data.size))


def test_checksums_are_those_of_zlib() -> None:
    rng = np.random.default_rng(0)
    content = rng.integers(0, 256, 1 << 21, np.uint8)
    for length in (*LENGTHS, *rng.integers(0, 5000, 500)):
        begin, before = int(rng.integers(0, 64)), int(rng.integers(0, 1 << 32))
        data = content[begin : begin + int(length)]
        assert crc32_of(before, data) == zlib.crc32(data.tobytes(), before), (begin, length)


def test_checksums_of_parts_are_that_of_the_whole() -> None:
    rng = np.random.default_rng(1)
    content, crc = rng.integers(0, 256, 1 << 16, np.uint8), 0
    for part in np.split(content, np.sort(rng.integers(0, content.size, 40))):
        crc = crc32_of(crc, part)
    assert crc == zlib.crc32(content.tobytes())


def test_checksums_of_parts_that_were_taken_by_themselves_are_joined() -> None:
    joined = internals().crc32_joined
    joined.restype, joined.argtypes = ctypes.c_uint32, (ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64)
    rng = np.random.default_rng(2)
    content, crc = rng.integers(0, 256, 1 << 16, np.uint8), 0
    for part in np.split(content, np.sort(rng.integers(0, content.size, 40))):
        crc = joined(crc, crc32_of(0, part), part.size)
    assert crc == zlib.crc32(content.tobytes())
