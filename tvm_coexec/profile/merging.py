"""Puts the samples of several profiles of one kind of device into one, each once."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from pathlib import Path

from tvm_coexec.files import whole_folder

from .profile import DATABASE, Profile, check_same_device
from .rows import damaged
from .store import lack_of_room

_COLUMNS = {
    "samples": "measured, layer, side, variant, units, other_variant, other_units, latency_us, canary_us",
    "failures": "failed, layer, cpu_variant, gpu_variant, message",
    "trial_runs": "ran_at, network, content",
}
"""What a row holds beside its number and its run."""

_LOOKED_UP = {
    "samples": ("layer", "side", "variant", "units", "other_units"),
    "failures": ("layer", "cpu_variant", "gpu_variant"),
    "trial_runs": ("network",),
}
"""Columns that never are NULL, of which there may be an index."""


def merge(out: str | os.PathLike[str], sources: Sequence[str | os.PathLike[str]]) -> None:
    """Make a profile of all that others hold, whole or not at all; its predictors are yet to be trained.

    Runs come in the order of their start, so that the origin of the latest is current. What planning keeps beside the
    predictors is that of the profile with the latest run.

    Raises
    ------
    FileFormatError
        The profiles are of different kinds of devices, one of them cannot be read, or there is something at ``out``.
    OSError
        There is no room for the new one.
    """
    Profile.check_vacant(out)
    paths = [Path(source) for source in sources]
    latest, families, planning = "", set[str](), None
    facts: dict[str, object] = {}
    runs: list[tuple[str, int, int]] = []
    for number, path in enumerate(paths):
        with Profile.open(path) as one:
            if facts:
                check_same_device(path, one.facts, facts)
            families |= set(one.families)
            started = max((run.started for run in one.runs()), default="")
            if not facts or started > latest:
                latest, facts, planning = started, one.facts, one.planning
        with closing(_connect(path)) as database:
            so_far = ""
            for run, began in database.execute("SELECT id, started FROM runs ORDER BY id"):
                so_far = max(so_far, began)  # a clock that was set back puts no run before those that were first
                runs.append((so_far, number, run))
    with whole_folder(out) as folder, Profile.create(folder, facts) as made:
        _copy_runs(folder, paths, sorted(runs))
        made.describe(families=sorted(families), planning=planning)


def _copy_runs(out: Path, paths: Sequence[Path], runs: Iterable[tuple[str, int, int]]) -> None:
    """Copy runs, each given by its start, its profile's number and its own, into the database of a new profile."""
    with closing(_connect(out)) as database:
        for number, path in enumerate(paths):
            database.execute(f"ATTACH ? AS source{number}", (str(path.absolute() / DATABASE),))
        copied: dict[int, set[int]] = {number: set() for number in range(len(paths))}
        with database:
            for _, number, run in runs:
                try:
                    copied[number].add(_copy_run(database, f"source{number}", run, copied[number]))
                except sqlite3.DatabaseError as error:
                    full = lack_of_room(out / DATABASE, error)
                    raise full or damaged(paths[number] / DATABASE, error) from None  # the new one is whole


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path / DATABASE)


def _copy_run(database: sqlite3.Connection, source: str, run: int, copied: Collection[int]) -> int:
    """Copy a run and its rows; those that are there already, from another copy of the same profile, are left out.

    Devices of one kind may have begun at once: their runs, of which ``copied`` are there, are not the same for that.

    Returns
    -------
    The run's number here.
    """
    circumstances = database.execute(
        f"SELECT started, generator, facts FROM {source}.runs WHERE id = ?", (run,)
    ).fetchone()
    alike = database.execute(
        "SELECT id FROM main.runs WHERE started = ? AND generator = ? AND facts = ? ORDER BY id", circumstances
    ).fetchall()
    into = next((int(number) for (number,) in alike if number not in copied), None)
    if into is None:
        added = database.execute("INSERT INTO main.runs (started, generator, facts) VALUES (?, ?, ?)", circumstances)
        into = int(added.lastrowid or 0)
    for table, columns in _COLUMNS.items():
        names = columns.split(", ")
        same = [f"own.{name} {'=' if name in _LOOKED_UP[table] else 'IS'} theirs.{name}" for name in names]
        database.execute(
            f"INSERT INTO main.{table} (run, {columns}) SELECT ?, {', '.join(f'theirs.{name}' for name in names)}"
            f" FROM {source}.{table} AS theirs WHERE theirs.run = ? AND NOT EXISTS (SELECT 1 FROM main.{table} AS own"
            f" WHERE own.run = ? AND {' AND '.join(same)}) ORDER BY theirs.id",
            (into, run, into),
        )
    return into
