"""Reads ``profile.json``, in which hands may have edited: whatever it holds is then of the kind that others rely on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvm_coexec.errors import FileFormatError, cannot_read
from tvm_coexec.files import is_vacant, read_json

from .rows import damaged
from .schema import VERSION

FORMAT, DESCRIPTION = "tvm-coexec profile", "profile.json"

_OF_ANY_NAME = "*"
_LARGEST = 1e15
"""More than the microseconds, bytes and rates that any device has; powers of *e* are far below it, too."""
_LARGEST_POWER = 50.0
"""The same of logarithms: no device is slower or faster than expected by a factor of e^50."""

_SIDES = ("cpu", "gpu")
_RATES = dict.fromkeys(("alone", "concurrent"), dict.fromkeys(_SIDES, _LARGEST))
_READS = {"amount_bytes": [_LARGEST], "alone": [_LARGEST], "concurrent": [_LARGEST]}
_SCORES = {_OF_ANY_NAME: {"mape_percent": _LARGEST, "within_10_percent": _LARGEST}}
_KINDS = {
    "created": str,
    "device": {"name": str, "mechanism": str},
    "families": [str],
    "report": {
        _OF_ANY_NAME: {"inside_percent": _LARGEST, "scores": {"all features": _SCORES[_OF_ANY_NAME], **_SCORES}}
    },
    "planning": {},
}
"""What there is at least: a text, a number up to a bound, a list of such, an object; each of ``report`` and
``planning`` may be null."""

_PLANNING = {
    "overheads": {"split_us": _LARGEST, _OF_ANY_NAME: _LARGEST},
    "reads": dict.fromkeys(_SIDES, _READS),
    "memory_model": {"weights": _RATES, "activations": _RATES, "cache_bytes": _LARGEST},
    "estimates_us": {side: {_OF_ANY_NAME: _LARGEST} for side in _SIDES},
    "noise": _RATES,
    "in_networks": {
        "usual": {_OF_ANY_NAME: _LARGEST_POWER},
        "by_operator": {_OF_ANY_NAME: {_OF_ANY_NAME: _LARGEST_POWER}},
        "stretch": dict.fromkeys(("log_factor", "low", "high"), _LARGEST_POWER),
    },
}
"""What tuning adds to ``planning``, one after the other."""


def read_description(path: Path) -> dict[str, Any]:
    """What a profile's folder says of itself; a :class:`FileFormatError` if that is none, or is damaged."""
    try:
        description = read_json(path / DESCRIPTION)
    except (FileNotFoundError, NotADirectoryError):
        is_foreign = path.exists() and not (path.is_dir() and is_vacant(path))
        remedy = f"make one with `tvm-coexec tune --out {path}`"
        if is_foreign:
            remedy = "name the folder that was tuned, or an empty one to tune into"
        raise FileFormatError(f"there is no profile at {path}; {remedy}") from None
    except OSError as error:
        raise FileFormatError(cannot_read(path / DESCRIPTION, error)) from None
    except ValueError as error:
        raise damaged(path / DESCRIPTION, error) from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise FileFormatError(f"{path} is no profile; make one with `tvm-coexec tune`")
    if description.get("version") != VERSION:
        raise FileFormatError(
            f"{path} is a profile of version {description.get('version')}, this program reads version {VERSION};"
            " tune again, or use the program that wrote it"
        )
    try:
        _check(description, _KINDS, "")
        planning = description["planning"] or {}
        _check(planning, {name: kind for name, kind in _PLANNING.items() if name in planning}, "planning")
        reads = planning.get("reads")
        if reads and len({len(reads[side][column]) for side in _SIDES for column in _READS}) > 1:
            raise ValueError("reads have columns of several lengths")
    except ValueError as error:
        raise damaged(path / DESCRIPTION, error) from None
    return description


def _check(value: Any, kind: Any, name: str) -> None:
    """Raise a ``ValueError`` that names what is missing in a value, or is of another kind."""
    if isinstance(kind, Mapping):
        if value is None and name in ("report", "planning"):
            return
        if not isinstance(value, dict):
            raise ValueError(f"{name} is no object")
        for key in kind.keys() - value.keys() - {_OF_ANY_NAME}:
            raise ValueError(f"{' of '.join(filter(None, (key, name)))} cannot be found")
        for key, own in value.items():
            if (wanted := kind.get(key, kind.get(_OF_ANY_NAME))) is not None:
                _check(own, wanted, key)
    elif isinstance(kind, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} is no list")
        for own in value:
            _check(own, kind[0], name)
    elif kind is str:
        if not isinstance(value, str):
            raise ValueError(f"{name} is no text")
    elif isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > kind:
        raise ValueError(f"{name} is no number from {-kind:g} to {kind:g}")
