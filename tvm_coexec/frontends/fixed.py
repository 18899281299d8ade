"""Inputs whose values the user fixes when a model is built: they are constants of it then."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from tvm_coexec.errors import ModelError

_WHOLE_FLOATS = 2**53
"""Floats hold all whole numbers up to this one."""


def check_values(values: Mapping[str, object], inputs: Collection[str]) -> dict[str, np.ndarray]:
    """Read the values as arrays; each needs its input, and at least one input has to be left.

    Raises
    ------
    ModelError
        Naming the first value that is none of numbers, or whose input there is not.
    """
    unknown = sorted(set(values) - set(inputs), key=str)
    if unknown:
        raise ModelError(f"a value is given for {', '.join(map(repr, unknown))}; the inputs are {', '.join(inputs)}")
    if values and len(values) == len(inputs):
        raise ModelError("values are given for all inputs, so that nothing is left to compute; leave one of them out")
    arrays = {}
    for name, value in values.items():
        try:
            array = np.asarray(value)
        except (RuntimeError, TypeError, ValueError) as error:  # an object may raise these where it makes an array
            raise ModelError(f"the value of input {name!r} is no array ({error}); give it numbers") from None
        if array.dtype == object and array.size and all(isinstance(number, int) for number in array.flat):
            raise ModelError(f"the value of input {name!r} does not fit 64 bits; give it smaller numbers")
        if array.dtype.kind not in "biuf":
            raise ModelError(f"the value of input {name!r} is of type {array.dtype}; give it numbers")
        arrays[name] = array
    return arrays


def shapes_of_values(
    values: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]], open_inputs: Iterable[str]
) -> dict[str, Sequence[int]]:
    """List the shapes that are given, and those of values of inputs that leave dimensions open; a number has none."""
    return {name: values[name].shape for name in open_inputs if name in values and values[name].ndim} | dict(shapes)


def as_constant(name: str, value: np.ndarray, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """Make an array of an input's type and shape from what the input always is.

    All elements are alike where the value is a number; a list of as many numbers is all elements, in order.

    Raises
    ------
    ModelError
        The value has another shape, or the type cannot hold it.
    """
    if value.ndim == 1 and value.size == math.prod(shape):
        value = value.reshape(shape)
    if value.size != 1 and value.shape != tuple(shape):
        raise ModelError(f"input {name!r} is {list(shape)}; its value is {list(value.shape)}, give one of that shape")
    with np.errstate(all="ignore"):
        array = value.astype(dtype)
    is_float = np.dtype(dtype).kind == "f"
    is_held = np.isfinite(array) == np.isfinite(value) if is_float else array == value
    if not is_held.all():
        raise ModelError(f"input {name!r} is {dtype}, which cannot be {value[~is_held].flat[0]}; give it another value")
    if value.dtype.kind == "f" and not is_float and (np.abs(value) > _WHOLE_FLOATS).any():
        raise ModelError(
            f"input {name!r} is {dtype}, and its value has floats up to {np.abs(value).max()}, where they do not hold "
            "every whole number; give it whole numbers alone"
        )
    filled = array if array.shape == tuple(shape) else np.full(shape, array.reshape(()))
    return np.ascontiguousarray(filled).reshape(shape)
