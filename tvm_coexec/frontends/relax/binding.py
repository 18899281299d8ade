"""What a Relax module leaves open: dimensions that shapes of inputs fix, and inputs that are constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import IRModule, relax, tirx

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.fixed import as_constant, check_values, shapes_of_values

from .calls import static_type

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def bound(
    module: IRModule, shapes: Mapping[str, Sequence[int]], values: Mapping[str, ArrayLike]
) -> tuple[IRModule, dict[str, np.ndarray]]:
    """Put numbers in the places of the dimensions that the shapes fix, and of parameters; give these, too."""
    parameters = {parameter.name: parameter for parameter in module["main"].params}
    numbers: dict[Any, int] = {}
    arrays = check_values(values, parameters)
    shapes = shapes_of_values(arrays, shapes, (name for name in arrays if _open_sizes(parameters[name])))
    for name, shape in shapes.items():
        if name not in parameters:
            raise ModelError(f"a shape is given for {name!r}; the inputs are {', '.join(parameters)}")
        declared = list(parameters[name].ty.shape.values)
        open_sizes = _open_sizes(parameters[name])
        pairs = list(zip(declared, shape, strict=False))
        fits = all(size == int(own) for own, size in pairs if own not in open_sizes)
        if len(declared) != len(shape) or not fits:
            sizes = ", ".join(str(size if size in open_sizes else int(size)) for size in declared)
            raise ModelError(f"input {name!r} is [{sizes}]; the shape {list(shape)} does not fit")
        numbers |= {own: size for own, size in pairs if own in open_sizes}
    module = relax.transform.BindSymbolicVars(numbers, "main")(module) if numbers else module
    fixed = {}
    for parameter in module["main"].params:
        if (value := arrays.get(name := parameter.name)) is not None:
            shape, dtype = static_type(parameter.ty, f"input {name!r}")
            fixed[name] = as_constant(name, value, dtype, shape)
    constants = {name: tvm.runtime.tensor(array) for name, array in fixed.items()}
    return relax.transform.BindParams("main", constants)(module) if constants else module, fixed


def _open_sizes(parameter: relax.Var) -> list[Any]:
    return [size for size in parameter.ty.shape.values if not isinstance(size, tirx.IntImm)]
