"""A module's file: a zip archive with a manifest, the CPU's library, the OpenCL source and the packed constants."""

from __future__ import annotations

import io
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvm_coexec.errors import FileFormatError

from .manifest import Manifest

_MANIFEST, _LIBRARY, _OPENCL, _CONSTANTS = "manifest.json", "cpu.so", "gpu.cl", "constants/{}.npy"

_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, KeyError, EOFError, OSError, RuntimeError, ValueError)
"""What reading an archive raises where any of its bytes is another: a RuntimeError is its "encrypted", for one."""


@dataclass(frozen=True)
class Package:
    """What a module file holds; ``constants`` are packed as the kernels read them."""

    manifest: Manifest
    library: bytes
    opencl_source: str
    constants: Mapping[str, np.ndarray]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file whole, or not at all."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(self.to_bytes())
        partial.replace(path)

    def to_bytes(self) -> bytes:
        """The file's content: the same for the same module, whenever it is made."""
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
            for name, entry in self._entries():
                archive.writestr(zipfile.ZipInfo(name), entry)  # whose date is always the same
        return content.getvalue()

    def _entries(self) -> Iterator[tuple[str, str | bytes]]:
        """Names and contents of what the file holds."""
        yield _MANIFEST, json.dumps(self.manifest.to_json(), indent=1)
        yield _LIBRARY, self.library
        yield _OPENCL, self.opencl_source
        for name, array in self.constants.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            yield _CONSTANTS.format(name), buffer.getvalue()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Package:
        """Read and check; :class:`FileFormatError` where the file is missing, damaged or of another version."""
        try:
            with zipfile.ZipFile(path) as archive:
                return cls._from_archive(archive)
        except FileNotFoundError:
            raise FileFormatError(
                f"there is no module at {os.fspath(path)}; make one with `tvm-coexec build`"
            ) from None
        except _DAMAGED as error:
            raise FileFormatError(f"{os.fspath(path)} is no module or is damaged ({error}); build it again") from None

    @classmethod
    def _from_archive(cls, archive: zipfile.ZipFile) -> Package:
        try:
            manifest = Manifest.from_json(json.loads(archive.read(_MANIFEST)))
        except json.JSONDecodeError as error:
            raise FileFormatError(f"the module's manifest is damaged ({error}); build the module again") from None
        constants = {}
        for constant in manifest.constants:
            try:
                array = np.load(io.BytesIO(archive.read(_CONSTANTS.format(constant.name))), allow_pickle=False)
            except ValueError as error:
                raise FileFormatError(f"constant {constant.name!r} of the module is damaged ({error})") from None
            if array.shape != constant.shape or array.dtype != constant.dtype:
                raise FileFormatError(
                    f"constant {constant.name!r} of the module is {array.dtype} {array.shape}, its manifest says "
                    f"{constant.dtype} {constant.shape}; build the module again"
                )
            constants[constant.name] = array
        return cls(manifest, archive.read(_LIBRARY), archive.read(_OPENCL).decode(), constants)
