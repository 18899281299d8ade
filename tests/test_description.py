"""Profiles whose description was edited by hand: refused in a line, or shown and planned by."""

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_device import PLANNING

from tvm_coexec import cli
from tvm_coexec.errors import FileFormatError
from tvm_coexec.planning.division import Overheads
from tvm_coexec.prediction.memory_model import MemoryModel
from tvm_coexec.prediction.noise import Noise
from tvm_coexec.prediction.surroundings import Surroundings
from tvm_coexec.profile import Profile
from tvm_coexec.profile.description import DESCRIPTION

FACTS = {"name": "pretended: gpu", "mechanism": "svm", "driver_version": "1"}
IN_NETWORKS = {
    "usual": {"cpu": 0.1, "gpu": -0.1},
    "by_operator": {"cpu": {"linear": 0.2}, "gpu": {}},
    "stretch": {"log_factor": 0.2, "low": -0.1, "high": 0.1},
}
SCORE = {"mape_percent": 9.0, "within_10_percent": 60.0}
REPORT = {"cpu": {"side": "cpu", "samples": 9, "inside_percent": 80.0, "scores": {"all features": SCORE}}}
WRONG = [None, -1, "", [], {}, "x", 1e308, True, [None], [-1.0], 10**30, {"a": 1}]


def test_whatever_is_edited_is_refused_in_a_line_or_of_the_right_kind(tmp_path: Path) -> None:
    with Profile.create(tmp_path / "p", FACTS) as profile:
        profile.describe(families=["linear"], report=REPORT, planning={**PLANNING, "in_networks": IN_NETWORKS})
    path = tmp_path / "p" / DESCRIPTION
    whole = json.loads(path.read_text())
    refused = 0
    for place in _places(whole):
        for edited in _edited(whole, place):
            path.write_text(json.dumps(edited))
            try:
                Profile.open(tmp_path / "p").close()
            except FileFormatError as error:
                assert "\n" not in str(error)
                refused += 1
                continue
            with contextlib.redirect_stdout(None):
                assert cli.main(["profile", "show", str(tmp_path / "p")]) == 0
            _use(edited["planning"] or {})
    assert refused > 500


@pytest.mark.parametrize("name", ["overheads", "reads", "memory_model", "estimates_us", "noise", "in_networks"])
def test_what_an_older_release_did_not_write_yet_may_be_missing(tmp_path: Path, name: str) -> None:
    with Profile.create(tmp_path / "p", FACTS) as profile:
        profile.describe(planning={key: value for key, value in PLANNING.items() if key != name})
    Profile.open(tmp_path / "p").close()


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value within another; of lists to the first two."""
    for key in value if isinstance(value, dict) else range(min(2, len(value))) if isinstance(value, list) else ():
        yield (*place, key)
        yield from _places(value[key], (*place, key))


def _edited(whole: Any, place: tuple[Any, ...]) -> Iterator[Any]:
    """Copies of the whole with another value at a place, and one without."""
    for wrong in [*WRONG, ...]:
        edited = copy.deepcopy(whole)
        within = edited
        for key in place[:-1]:
            within = within[key]
        if wrong is ...:
            del within[place[-1]]
        else:
            within[place[-1]] = wrong
        yield edited


def _use(planning: dict[str, Any]) -> None:
    """Read what planning reads."""
    readers = {
        "overheads": lambda values: Overheads(**values).costs(),
        "memory_model": MemoryModel.from_json,
        "noise": Noise.from_json,
        "in_networks": Surroundings.from_json,
    }
    for name, read in readers.items():
        if name in planning:
            with contextlib.suppress(TypeError):  # unknown fields, of which `planner` tells that the profile is damaged
                read(planning[name])
