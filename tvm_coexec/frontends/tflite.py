"""TFLite files: read, imported operator by operator, and traced by the names that they give their tensors."""

from __future__ import annotations

from pathlib import Path

from . import tflite_axes, tflite_elementwise, tflite_images, tflite_places
from .relax import Naming, bindings, trace_function
from .tflite_file import FileOperator, TfliteFile
from .tflite_import import Converter, Imported, import_file
from .tflite_tvm import by_tvm
from .trace import Source, Trace, claim_name

_CONVERTERS = {
    **{code: Converter(write, "first") for code, write in tflite_images.CONVERTERS.items()},
    **{code: Converter(write, "either") for code, write in tflite_elementwise.CONVERTERS.items()},
    **{code: Converter(write, "either") for code, write in tflite_axes.IN_EITHER_ORDER.items()},
    **{code: Converter(write, "file") for code, write in tflite_axes.IN_FILE_ORDER.items()},
    **{code: Converter(write, "file") for code, write in tflite_places.CONVERTERS.items()},
}


def trace_tflite(path: Path) -> Trace:
    """List the operations of a TFLite file.

    Raises
    ------
    ModelError
        The file cannot be read, or no layer can compute what is in it.
    """
    imported = import_file(TfliteFile(path), _converter)
    return trace_function(imported.module, _naming(imported))


def _converter(operator: FileOperator) -> Converter:
    return _CONVERTERS.get(operator.code, Converter(by_tvm, "file"))


def _naming(imported: Imported) -> Naming:
    """Names as the file has them; of several variables that one operator became, the last is called as its result."""
    function = imported.module["main"]
    taken: set[str] = set()
    values, sources = {}, {}
    for parameter in function.params:
        values[parameter] = claim_name(imported.values[parameter], taken)
    source = Source("the result", imported.outputs[0][0], "output")
    for binding in reversed(bindings(function)):
        source = sources[binding.var] = imported.sources.get(binding.var, source)
        values[binding.var] = claim_name(imported.values.get(binding.var, source.name), taken)
    return Naming(values, sources, imported.outputs)
