"""A module's file: a zip archive with a manifest, the CPU's library, the OpenCL source and the packed constants."""

from __future__ import annotations

import io
import json
import lzma
import math
import mmap
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from tvm_coexec.errors import FileFormatError
from tvm_coexec.files import whole_file

from .manifest import ConstantSpec, Manifest, Source

_MANIFEST, _LIBRARY, _OPENCL, _CONSTANTS = "manifest.json", "cpu.so", "gpu.cl", "constants/{}.npy"
"""Constants have numbers: a name that a model gives may be no name for an entry."""

_LENGTHS, _LENGTHS_AT = struct.Struct("<HH"), 26
"""Where the lengths of an entry's name and of its extra field stand: see section 4.3.7 of the ZIP specification."""

_LONG_BYTES = 1 << 30
"""Larger constants get an entry whose size has 64 bits, which all have to have from 2 GiB on, headers included."""

_PART_BYTES = 1 << 20

_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, KeyError, EOFError, OSError, RuntimeError, ValueError)
"""What reading an archive raises where any of its bytes is another: a RuntimeError is its "encrypted", for one."""


@dataclass(frozen=True)
class Package:
    """What a module file holds; ``constants`` are packed as the kernels read them."""

    manifest: Manifest
    library: bytes
    opencl_source: str
    constants: Mapping[Source, np.ndarray]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file whole, or not at all."""
        with whole_file(path) as file:
            self._write_to(file)

    def to_bytes(self) -> bytes:
        """The file's content: the same for the same module, whenever it is made."""
        content = io.BytesIO()
        self._write_to(content)
        return content.getvalue()

    def _write_to(self, file: IO[bytes]) -> None:
        """Write all entries; of a constant no more than a part is copied at a time, if it is contiguous."""
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo(_MANIFEST), json.dumps(self.manifest.to_json(), indent=1))
            archive.writestr(zipfile.ZipInfo(_LIBRARY), self.library)
            archive.writestr(zipfile.ZipInfo(_OPENCL), self.opencl_source)
            for number, array in enumerate(self.constants.values()):
                info = zipfile.ZipInfo(_CONSTANTS.format(number))  # whose date is always the same
                with archive.open(info, "w", force_zip64=array.nbytes >= _LONG_BYTES) as entry:
                    np.save(entry, np.asarray(array, order="C"), allow_pickle=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Package:
        """Map and check a file; :class:`FileFormatError` where it is missing, damaged or of another version.

        Constants stay in the file until they are used: until then it may be replaced by another, as :meth:`write`
        does, but not written to.
        """
        try:
            if Path(path).exists() and not Path(path).is_file():  # a pipe is waited for, and /dev/zero read for ever
                raise FileFormatError(f"{os.fspath(path)!r} is no file; name a module, as `tvm-coexec build` writes it")
            with Path(path).open("rb") as file, zipfile.ZipFile(file) as archive:
                return cls._from_archive(archive, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ))
        except FileNotFoundError:
            raise FileFormatError(
                f"there is no module at {os.fspath(path)}; make one with `tvm-coexec build`"
            ) from None
        except _DAMAGED as error:
            raise FileFormatError(f"{os.fspath(path)} is no module or is damaged ({error}); build it again") from None

    @classmethod
    def _from_archive(cls, archive: zipfile.ZipFile, content: mmap.mmap) -> Package:
        try:
            manifest = Manifest.from_json(json.loads(archive.read(_MANIFEST)))
        except json.JSONDecodeError as error:
            raise FileFormatError(f"the module's manifest is damaged ({error}); build the module again") from None
        constants = {
            constant.source: _mapped(archive, content, number, constant)
            for number, constant in enumerate(manifest.constants)
        }
        return cls(manifest, archive.read(_LIBRARY), archive.read(_OPENCL).decode(), constants)


def _mapped(archive: zipfile.ZipFile, content: mmap.mmap, number: int, constant: ConstantSpec) -> np.ndarray:
    """A constant where it lies in the file, once its checksum is seen to be right."""
    info = archive.getinfo(_CONSTANTS.format(number))
    with archive.open(info) as entry:
        while entry.read(_PART_BYTES):
            pass  # the checksum is compared at the end
        entry.seek(0)
        try:
            np.lib.format.read_magic(entry)
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(entry)
        except (ValueError, TypeError, SyntaxError, tokenize.TokenError) as error:
            raise FileFormatError(
                f"{constant.source} cannot be read from the module ({error}); build it again"
            ) from None
        start = entry.tell()
    if shape != constant.shape or dtype != constant.dtype:
        raise FileFormatError(
            f"the module has {constant.source} as {dtype} {shape}, its manifest says "
            f"{constant.dtype} {constant.shape}; build the module again"
        )
    count = math.prod(shape)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != start + count * dtype.itemsize:
        raise ValueError(f"{constant.source} is compressed or cut off")
    name_bytes, extra_bytes = _LENGTHS.unpack_from(content, info.header_offset + _LENGTHS_AT)
    start += info.header_offset + _LENGTHS_AT + _LENGTHS.size + name_bytes + extra_bytes
    return np.frombuffer(content, dtype, count, start).reshape(shape, order="F" if is_fortran else "C")
