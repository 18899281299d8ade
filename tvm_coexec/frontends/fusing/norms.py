"""Form the layers of normalisations over the pixels of an image: of each channel, or of groups of channels."""

from __future__ import annotations

import numpy as np

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Operation, Source
from tvm_coexec.graph.graph import Image
from tvm_coexec.layers import AnyLayer, Conv2d, Elementwise, Pool, step

from .drafts import Draft, DraftTensor
from .state import State
from .values import Value, claim_image


def add(state: State, operation: Operation) -> bool:
    """Form the layers of an operation, if it is one of this module's.

    Means and mean squares are poolings of whole images, which convolutions of one pixel average over groups.
    """
    if operation.op not in ("group_norm", "instance_norm"):
        return False
    source, epsilon = operation.source, operation.attributes["epsilon"]
    value = state.materialised(operation.inputs[0], source)
    groups = operation.attributes.get("groups") or value.shape[1]
    gamma, beta = (_for_channels(state, name, value, groups, source) for name in operation.inputs[1:])
    if epsilon <= 0:
        raise ModelError(f"{source} adds {epsilon} to variances; supported is more than 0")
    image = _image(value, groups, source)
    batch, h, w, channels = image
    pixel = (batch, 1, 1, channels)

    def made(layer: AnyLayer, size: Image, reads: DraftTensor, *others: DraftTensor) -> Draft:
        shape = (size[0], size[3], *size[1:3])
        draft = state.new_draft(layer, reads, shape, channels, source)
        draft.output.image, draft.others = size, others
        return draft

    def over_groups(each: Draft) -> Draft:
        if groups == channels:
            return each
        average = made(Conv2d(1, 1, channels, channels, (1, 1), groups=groups, batch=batch), pixel, each.output)
        average.params["weights"] = np.full((channels, channels // groups, 1, 1), groups / channels)
        return average

    def pooled(kind: str, reads: DraftTensor) -> Draft:
        return over_groups(made(Pool(kind, h, w, channels, (h, w), batch=batch), pixel, reads))

    mean = pooled("average", value.tensor)
    centred = made(Elementwise("subtract", image, pixel), image, value.tensor, mean.output)
    factor = pooled("mean_square", centred.output)
    factor.append(step("inverse_root", epsilon))
    result = made(Elementwise("multiply", image, pixel), image, centred.output, factor.output)
    result.append_constant("scale", gamma)
    result.append_constant("bias", beta)
    result.output.name = operation.output
    state.values[operation.output] = Value(result.output, value.shape, value.batch)
    return True


def _image(value: Value, groups: int, source: Source) -> Image:
    tensor = value.tensor
    image = tensor.image or (value.batch, 1, tensor.rows // value.batch, tensor.channels)
    if value.channels_last and image[1:3] != (1, 1):
        raise ModelError(f"{source} normalises {list(value.shape)} over pixels; supported are images, channels first")
    if image[0] != value.batch or value.shape[0] != value.batch or tensor.channels % groups:
        raise ModelError(f"{source} normalises {groups} groups of {tensor.channels} channels; they must be alike")
    claim_image(tensor, image, source)
    return image


def _for_channels(state: State, name: str, value: Value, groups: int, source: Source) -> np.ndarray:
    """Give a factor or summand as one number for each channel."""
    array, channels = state.trace.constants.get(name), value.tensor.channels
    if array is None or array.size not in (groups, channels) or channels % groups:
        raise ModelError(f"{source} must have a constant scale and shift for each channel")
    vector = array.reshape(-1).astype(np.float64)
    return vector if vector.size == channels else np.repeat(vector, channels // groups)
