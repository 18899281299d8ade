"""Programs of torch.export, imported by TVM's own Relax front end."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from ..errors import ModelError, last_line
from .relax import trace_relax
from .trace import Trace

if TYPE_CHECKING:
    from torch.export import ExportedProgram  # type: ignore[import-not-found, unused-ignore]


def trace_torch(program: ExportedProgram) -> Trace:
    """List the operations of an exported program.

    Raises
    ------
    ModelError
        TVM cannot import it, or no layer can compute what is in it.
    """
    from tvm.relax.frontend.torch import from_exported_program

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = from_exported_program(program, unwrap_unit_return_tuple=True)
    except Exception as error:  # TVM's converters raise whatever they stumble over
        reason = last_line(error, type(error).__name__)
        raise ModelError(f"TVM cannot import the exported program ({reason}); replace what it names") from error
    return trace_relax(module)
