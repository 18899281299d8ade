"""Builds tiny kernels, by which a device shows that it works; says what is wrong where they cannot be built."""

from __future__ import annotations

import os
import warnings
from typing import Any

import platformdirs

from tvm_coexec.errors import KernelError, first_line


def build(context: Any, source: str) -> Any:
    """Compile tiny kernels.

    Raises
    ------
    KernelError
        The driver compiles none.
    """
    import pyopencl as cl

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cl.CompilerWarning)  # some drivers praise themselves in the build log
            return cl.Program(context, source).build(cache_dir=False)
    except cl.Error as error:
        raise KernelError(
            f"the driver of {context.devices[0].name} compiles no kernel ({first_line(error)}); reinstall or update it"
        ) from None


def probe_kernel(context: Any, source: str, name: str) -> Any:
    """Make one of the tiny kernels of a source.

    Raises
    ------
    KernelError
        The driver compiles none, or what its own cache holds of them is damaged.
    """
    import pyopencl as cl

    try:
        return cl.Kernel(build(context, source), name)
    except cl.Error as error:
        raise KernelError(
            f"the driver of {context.devices[0].name} has lost what it compiled ({first_line(error)}); delete its cache"
            f" of kernels{_pocl_cache(context)}, or reinstall it"
        ) from None


def _pocl_cache(context: Any) -> str:
    """Where PoCL keeps compiled kernels, and trusts them; nothing of another driver."""
    if "Portable Computing Language" not in context.devices[0].platform.name:
        return ""
    return f" in {os.environ.get('POCL_CACHE_DIR') or platformdirs.user_cache_path('pocl')}"
