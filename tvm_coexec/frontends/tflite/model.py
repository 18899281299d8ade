"""TFLite files that were read: imported operator by operator, and traced by the names that they give their tensors."""

from __future__ import annotations

import warnings
from dataclasses import replace

from tvm_coexec.frontends.relax.module import Naming, bindings, trace_function
from tvm_coexec.frontends.trace import Source, Trace, claim_name

from . import axes as tflite_axes
from . import control as tflite_control
from . import custom as tflite_custom
from . import detection as tflite_detection
from . import elementwise as tflite_elementwise
from . import images as tflite_images
from . import indexing as tflite_indexing
from . import recurrent as tflite_recurrent
from . import spectra as tflite_spectra
from .file import FileOperator, TfliteFile
from .importer import Converter, Imported, import_file
from .tvm import by_tvm

_CONVERTERS = {
    **{code: Converter(write, "first") for code, write in tflite_images.CONVERTERS.items()},
    **{code: Converter(write, "either") for code, write in tflite_elementwise.CONVERTERS.items()},
    **{code: Converter(write, "either") for code, write in tflite_axes.IN_EITHER_ORDER.items()},
    **{code: Converter(write, "file") for code, write in tflite_axes.IN_FILE_ORDER.items()},
    **{code: Converter(write, "first") for code, write in tflite_custom.ON_IMAGES.items()},
    **{code: Converter(write, "file", is_whole=True) for code, write in tflite_custom.ON_LANDMARKS.items()},
    **{code: Converter(write, "file") for code, write in tflite_indexing.CONVERTERS.items()},
    **{code: Converter(write, "file") for code, write in tflite_control.CONVERTERS.items()},
    **{code: Converter(write, "file") for code, write in tflite_detection.CONVERTERS.items()},
    **{code: Converter(write, "file") for code, write in tflite_recurrent.CONVERTERS.items()},
    **{code: Converter(write, "file") for code, write in tflite_spectra.CONVERTERS.items()},
}


def trace_tflite(file: TfliteFile) -> Trace:
    """List the operations of a TFLite file.

    Raises
    ------
    ModelError
        No layer can compute what is in it.
    """
    _warn_of_open_shapes(file)
    imported = import_file(file, _converter)
    return replace(trace_function(imported.module, _naming(imported)), states=file.states, fixed=file.fixed)


def _warn_of_open_shapes(file: TfliteFile) -> None:
    """Tell for which shapes a module is built whose inputs may have others, if these are the file's own."""
    inputs = [file.tensors[index] for index in file.inputs]
    asked = [one for one in inputs if not one.has_fixed_shape and file.input_shapes[one.index] == one.shape]
    if asked:
        options = " ".join(f"--shape {one.name}={','.join(map(str, one.shape))}" for one in asked)
        warnings.warn(f"inputs have dimensions that the model leaves open: built is for {options}", stacklevel=2)


def _converter(file: TfliteFile, operator: FileOperator) -> Converter:
    numbers = [file.tensors[index].stored_dtype for index in (*operator.inputs, *operator.outputs) if index >= 0]
    if "complex64" in numbers and operator.code in tflite_spectra.ON_PAIRS:
        return Converter(tflite_spectra.ON_PAIRS[operator.code], "file")
    return _CONVERTERS.get(operator.code, Converter(by_tvm, "file"))


def _naming(imported: Imported) -> Naming:
    """Names as the file has them; of several variables that one operator became, the last is called as its result."""
    function = imported.module["main"]
    taken: set[str] = set()
    values, sources = {}, {}
    for parameter in function.params:
        values[parameter] = claim_name(imported.values[parameter], taken)
    source, is_whole = Source("the result", imported.outputs[0][0], "output"), False
    inner = set()
    for binding in reversed(bindings(function)):
        if binding.var in imported.sources:
            source, is_whole = imported.sources[binding.var], binding.var in imported.wholes
        elif is_whole:
            inner.add(binding.var)
        sources[binding.var] = source
        values[binding.var] = claim_name(imported.values.get(binding.var, source.name), taken)
    return Naming(values, sources, imported.outputs, inner=inner)
