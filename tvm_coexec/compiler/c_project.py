"""A C project around a module has an example application, the runtime's sources, and how to build them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tvm_coexec.errors import InputError
from tvm_coexec.files import is_vacant, whole_file, whole_folder
from tvm_coexec.module.package import Package
from tvm_coexec.runtime.library import SOURCE_FOLDER

_TEMPLATE = Path(__file__).with_name("c_project")
_MODULE = "model.coexec"


def write_c_project(module: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Write the project.

    Parameters
    ----------
    module
        A module's file, which is copied.
    folder
        A folder that does not exist, or is empty.

    Raises
    ------
    InputError
        There is something in the folder already.
    FileFormatError
        The module is damaged, or there is none.
    """
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise InputError(f"{place} is a file, and a project a folder; name one that does not exist")
    if not is_vacant(place):
        raise InputError(f"{place} is not empty; name a folder that does not exist")
    package = Package.read(module)
    with whole_folder(place) as partial:
        for source in sorted(_TEMPLATE.iterdir()):  # a copy of the tree would not tell why it failed
            shutil.copyfile(source, partial / source.name)
        (partial / "libcoexec").mkdir()
        for source in sorted(SOURCE_FOLDER.glob("*.[ch]")):
            shutil.copyfile(source, partial / "libcoexec" / source.name)
        with whole_file(partial / _MODULE) as file:
            package.write_to(file)
