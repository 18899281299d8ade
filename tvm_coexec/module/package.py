"""A module's file: what the C runtime maps and runs, with a description for tools; ``docs/module-format.md`` has it."""

from __future__ import annotations

import functools
import io
import json
import math
import mmap
import os
import stat
import struct
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from tvm_coexec.errors import FileFormatError, cannot_read
from tvm_coexec.files import whole_file

from .manifest import Manifest
from .table import Tables, constant_offsets
from .tensors import Source

MAGIC, VERSION = b"COEXEC\r\n", 4
SECTIONS = (
    *("description", "strings", "numbers", "blocks", "tensors", "inputs", "outputs", "steps", "reads", "launches"),
    *("arguments", "cpu_code", "opencl", "constants", "facts"),
)
"""All sections of a file, in their order; they are numbered from 1."""

_ALIGNMENT, _CONSTANTS_ALIGNMENT = 64, 16384
"""Sections begin at cache lines, and constants at pages, of which Android's largest have 16 KiB."""
_HEADER, _CHECKSUM, _SECTION = struct.Struct("<8sIIQI"), struct.Struct("<I"), struct.Struct("<IIQQ")
_TABLE_AT = _HEADER.size + _CHECKSUM.size


@dataclass(frozen=True)
class Package:
    """What a module file holds; ``constants`` are packed as the kernels read them, or as their spec says."""

    manifest: Manifest
    library: bytes
    opencl_source: str
    constants: Mapping[Source, np.ndarray]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file whole, or not at all."""
        with whole_file(path) as file:
            self.write_to(file)

    def to_bytes(self) -> bytes:
        """Make the file's content: the same for the same module, whenever it is made."""
        content = io.BytesIO()
        self.write_to(content)
        return content.getvalue()

    def write_to(self, file: IO[bytes]) -> None:
        """Write all sections; no constant is copied that is contiguous."""
        tables = Tables(self.manifest, self.library, self.opencl_source).sections
        write_sections(
            file,
            {name: [content] for name, content in tables.items()}
            | {
                "description": [self.manifest.to_text().encode()],
                "cpu_code": [self.library],
                "opencl": [self.opencl_source.encode()],
                "constants": list(self._constant_parts()),
            },
        )

    def _constant_parts(self) -> Iterator[bytes | memoryview]:
        """Make the section of constants: each of these at its offset, and zeros between them."""
        end = 0
        for source, offset in constant_offsets(self.manifest).items():
            array = np.asarray(self.constants[source], order="C")
            yield bytes(offset - end)
            yield array.reshape(-1).view(np.uint8).data
            end = offset + array.nbytes

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Package:
        """Map a file, and check what tools read of it; the rest is the runtime's to check, before it runs anything.

        Constants stay in the file until they are used: until then it may be replaced by another, as :meth:`write`
        does, but not written to.

        Raises
        ------
        FileFormatError
            The file is missing, damaged or of another version.
        """
        with open_file(path) as file:
            return cls.map(file, path)

    @classmethod
    def map(cls, file: IO[bytes], path: str | os.PathLike[str]) -> Package:
        """:meth:`read` a file that is open; ``path`` is its name in errors."""
        sections = read_sections(_mapped(file, path), path)
        try:
            manifest = Manifest.from_json(json.loads(bytes(sections["description"])))
        except ValueError as error:
            raise FileFormatError(f"the module's manifest is damaged ({error}); build the module again") from None
        constants = _constants(manifest, sections["constants"], path)
        return cls(manifest, bytes(sections["cpu_code"]), bytes(sections["opencl"]).decode(errors="replace"), constants)


class FileConstants(Mapping[Source, np.ndarray]):
    """Constants of a module: some are in memory, the others are read from its open file whenever they are asked for."""

    def __init__(self, in_memory: Mapping[Source, np.ndarray], manifest: Manifest, file: IO[bytes]) -> None:
        self._in_memory = in_memory
        self._specs = {constant.source: constant for constant in manifest.constants}
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        entry_at = _TABLE_AT + SECTIONS.index("constants") * _SECTION.size
        _, _, begin, _ = _SECTION.unpack(os.pread(file.fileno(), _SECTION.size, entry_at))
        self._places = {source: begin + offset for source, offset in constant_offsets(manifest).items()}

    def __getitem__(self, source: Source) -> np.ndarray:
        if source in self._in_memory:
            return self._in_memory[source]
        spec = self._specs[source]
        content = os.pread(self._descriptor, spec.nbytes, self._places[source])
        if len(content) != spec.nbytes:
            raise FileFormatError("the module's file was cut off since it was loaded; build it again")
        return np.frombuffer(content, spec.dtype).reshape(spec.shape)

    def __iter__(self) -> Iterator[Source]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


def identity_of(path: str | os.PathLike[str]) -> bytes:
    """What two files share only if they hold the same: headers, which have a checksum of all else, and size."""
    with open_file(path) as file:
        return file.read(_TABLE_AT) + os.fstat(file.fileno()).st_size.to_bytes(8, "little")


def write_sections(file: IO[bytes], sections: Mapping[str, Sequence[bytes | memoryview]]) -> None:
    """Write a file with these contents, each in parts."""
    table, end = b"", _TABLE_AT + len(SECTIONS) * _SECTION.size
    for number, name in enumerate(SECTIONS, 1):
        end += -end % (_CONSTANTS_ALIGNMENT if name == "constants" else _ALIGNMENT)
        checksum = functools.reduce(lambda before, part: zlib.crc32(part, before), sections[name], 0)
        nbytes = sum(map(len, sections[name]))
        table += _SECTION.pack(number, checksum, end, nbytes)
        end += nbytes
    header = _HEADER.pack(MAGIC, VERSION, len(SECTIONS), end, zlib.crc32(table))
    file.write(header + _CHECKSUM.pack(zlib.crc32(header)) + table)
    written = _TABLE_AT + len(table)
    for name, (_, _, offset, nbytes) in zip(SECTIONS, _SECTION.iter_unpack(table), strict=True):
        file.write(bytes(offset - written))
        for part in sections[name]:
            file.write(part)
        written = offset + nbytes


def open_file(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a module's file to be read.

    Raises
    ------
    FileFormatError
        There is none.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # a pipe is waited for, and /dev/zero read for ever
            raise FileFormatError(f"{os.fspath(path)!r} is no file; name a module, as `tvm-coexec build` writes it")
        return Path(path).open("rb")
    except FileNotFoundError:
        raise FileFormatError(f"there is no module at {os.fspath(path)}; make one with `tvm-coexec build`") from None
    except OSError as error:
        raise FileFormatError(cannot_read(os.fspath(path), error)) from None
    except ValueError as error:
        raise _damaged(path, error) from None


def _mapped(file: IO[bytes], path: str | os.PathLike[str]) -> memoryview:
    """The content of a file, which is not read before it is looked at."""
    if not os.fstat(file.fileno()).st_size:
        raise _damaged(path, "it is empty")
    try:
        return memoryview(mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def read_sections(view: memoryview, path: str | os.PathLike[str]) -> dict[str, memoryview]:
    """The sections of a file, once its header is seen to be right, and the description's checksum."""
    if len(view) < _TABLE_AT or view[: len(MAGIC)] != MAGIC:
        raise _damaged(path, "it does not begin as a module does")
    _, version, count, nbytes, table_checksum = _HEADER.unpack_from(view)
    if version != VERSION:
        raise FileFormatError(
            f"{os.fspath(path)} has format version {version}, this release reads {VERSION}; build it again"
        )
    table = view[_TABLE_AT : _TABLE_AT + count * _SECTION.size]
    (checksum,) = _CHECKSUM.unpack_from(view, _HEADER.size)
    if checksum != zlib.crc32(view[: _HEADER.size]) or table_checksum != zlib.crc32(table):
        raise _damaged(path, "the header's checksum is another")
    if count != len(SECTIONS) or nbytes != len(view):
        raise _damaged(path, f"it has {len(view)} bytes of {nbytes}")
    sections = {}
    for name, (_, checksum, offset, size) in zip(SECTIONS, _SECTION.iter_unpack(table), strict=True):
        sections[name] = view[offset : offset + size]
        if len(sections[name]) != size or (name == "description" and zlib.crc32(sections[name]) != checksum):
            raise _damaged(path, f"the checksum of its {name} is another")
    return sections


def section_sizes(path: str | os.PathLike[str]) -> dict[str, int]:
    """Count the bytes of each section of a file."""
    with open_file(path) as file:
        return {name: len(section) for name, section in read_sections(_mapped(file, path), path).items()}


def _constants(manifest: Manifest, section: memoryview, path: str | os.PathLike[str]) -> dict[Source, np.ndarray]:
    """All constants, where they lie in the file."""
    offsets = constant_offsets(manifest)
    if any(offsets[constant.source] + constant.nbytes > len(section) for constant in manifest.constants):
        raise _damaged(path, "its constants are cut off")
    return {
        constant.source: np.frombuffer(
            section, constant.dtype, math.prod(constant.shape), offsets[constant.source]
        ).reshape(constant.shape)
        for constant in manifest.constants
    }


def _damaged(path: str | os.PathLike[str], why: object) -> FileFormatError:
    return FileFormatError(f"{os.fspath(path)} is no module or is damaged ({why}); build it again")
