"""TFLite files, imported by TVM's own Relax front end."""

from __future__ import annotations

from pathlib import Path

from tvm import relax

from ..errors import ModelError, last_line
from .relax import trace_relax
from .trace import Trace


def trace_tflite(path: Path) -> Trace:
    """List the operations of a TFLite file.

    Raises
    ------
    ModelError
        The file cannot be read, or no layer can compute what is in it.
    """
    import tflite
    from tvm.relax.frontend.tflite import from_tflite

    if not path.is_file():
        raise ModelError(f"there is no model file {str(path)!r}; give the path of a TFLite file")
    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise ModelError(f"{str(path)!r} is no TFLite model; convert it again")
    try:
        module = from_tflite(tflite.Model.GetRootAsModel(content, 0))
    except Exception as error:  # TVM's converters raise whatever they stumble over
        reason = last_line(error, type(error).__name__)
        raise ModelError(f"TVM cannot import {str(path)!r} ({reason}); replace what it names") from error
    # layers expect the order of axes in which ONNX and torch have their images
    channels_first = {"relax.nn.conv2d": ["NCHW", "OIHW"]}
    return trace_relax(relax.transform.ConvertLayout(channels_first)(module))
