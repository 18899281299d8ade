"""The database of a profile keeps every repetition of every measurement, the candidates that failed, and trial runs.

Its tables are plain: layers, variants and facts are JSON, times are arrays of microseconds. Every row knows its run,
and a run its origin: the device, its driver and the version of the kernels. What was measured of another driver or of
older kernels stays, but only rows of the last run's origin are current and are given out.
"""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from tvm_coexec.errors import FileFormatError
from tvm_coexec.layers import GENERATOR_VERSION, AnyLayer, Variant

from .locks import lockers
from .records import Candidate, Point, Sample, VariantSets
from .rows import candidate_key, damaged, half_key, kernel_of_row, sample_of_row
from .schema import SCHEMA, fault_of
from .trial_runs import TrialRun

_FAILURES_LAST = timedelta(days=7)
"""A candidate that failed is tried again after this time: what failed may have been the machine."""

_ORIGIN_FACTS = ("name", "cpu_model", "driver_version", "mechanism")
"""What two runs must have in common for the times of one to be true of the other, besides TVM's version."""

_BUSY_TIMEOUT_S, _BUSY_TIMEOUT_OF_RUNS_S = 4.0, 30.0
"""How long others' locks are waited for: somebody waits for who opens a profile, and a tuning would lose hours."""


@dataclass(frozen=True)
class Run:
    """Circumstances under which some samples were measured, and how many.

    Parameters
    ----------
    started
        When, as ISO 8601, UTC.
    generator
        Version of what made the kernels.
    facts
        What the device said of itself.
    samples, failures
        How many there are of each.
    is_current
        Whether they are true of the device as it was last seen, and of the kernels of this program.
    """

    started: str
    generator: int
    facts: Mapping[str, Any]
    samples: int
    failures: int
    is_current: bool

    @property
    def compiler(self) -> str | None:
        """TVM's version."""
        return _compiler(self.facts)


_LOCKED, _FULL = "database is locked", "database or disk is full"
"""SQLite's words for a file that another process keeps for itself, and for a lack of room."""


class SampleStore:
    """An open database; whatever a method has added is on disk when it returns.

    Raises
    ------
    FileFormatError
        There is no such database, or it is damaged or of another version; also from the methods.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._here: str | None = None
        self._runs: dict[str, int] = {}
        self._current: set[int] | None = None
        try:
            self._database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_TIMEOUT_S)
        except sqlite3.OperationalError as error:
            raise damaged(path, error) from None
        self._database.text_factory = bytes.decode  # sqlite3's own error of text that is none looks like a full disk's
        try:
            fault = fault_of(self._database)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            fault = str(error)
        if fault is not None:
            self.close()
            raise self._unusable(fault) if fault == _LOCKED else damaged(path, fault)

    @staticmethod
    def create(path: Path) -> None:
        """Make an empty database; an ``OSError`` where there is no room for it."""
        with closing(sqlite3.connect(path)) as database:
            try:
                database.executescript(SCHEMA)
            except sqlite3.OperationalError as error:
                raise lack_of_room(path, error) or OSError(errno.EIO, str(error), str(path)) from None

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def start_run(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """Say under which circumstances what follows is measured; the facts of the run before, if any.

        The run is stored with the first thing that is measured in it: whoever only looks leaves nothing behind.
        """
        self._here, self._runs, self._current = json.dumps(dict(facts), sort_keys=True), {}, None
        with self._reading() as database:
            database.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_OF_RUNS_S * 1e3:.0f}")
            row = database.execute("SELECT facts FROM runs ORDER BY id DESC LIMIT 1").fetchone()
        return None if row is None else self._facts(row[0])

    def runs(self) -> list[Run]:
        """Every run, the first one first."""
        with self._reading() as database:
            rows = database.execute(
                "SELECT id, started, generator, facts, (SELECT count(*) FROM samples WHERE run = runs.id),"
                " (SELECT count(*) FROM failures WHERE run = runs.id) FROM runs ORDER BY id"
            ).fetchall()
        current = self._current_runs()
        return [
            Run(started, generator, self._facts(facts), samples, failures, number in current)
            for number, started, generator, facts, samples, failures in rows
        ]

    def _current_runs(self) -> set[int]:
        """The runs of the same origin as this one, or as the last one, if that is of this program's kernels."""
        if self._current is None:
            self._current = self._find_current_runs()
        return self._current

    def _find_current_runs(self) -> set[int]:
        with self._reading() as database:
            rows = database.execute("SELECT id, generator, facts FROM runs ORDER BY id").fetchall()
        origins = {number: (generator, self._origin(facts)) for number, generator, facts in rows}
        if self._here is not None:
            current = (GENERATOR_VERSION, self._origin(self._here))
        elif origins:
            current = origins[max(origins)]
        else:
            return set()
        return {number for number, origin in origins.items() if origin == current and origin[0] == GENERATOR_VERSION}

    def _origin(self, facts: str) -> tuple[Any, ...]:
        known = self._facts(facts)
        return (*(known.get(name) for name in _ORIGIN_FACTS), _compiler(known))

    def _is_current(self) -> str:
        """The condition in SQL that a row belongs to a current run."""
        return f"run IN ({', '.join(map(str, sorted(self._current_runs())))})"

    def add_samples(self, samples: Iterable[Sample], device: str = "") -> None:
        """Store samples, all or none; see :meth:`Profile.add_samples`."""
        run, measured = self._current_run(device), now()
        rows = [
            (run, measured, *half_key(sample), json.dumps(sample.latency_us), sample.canary_us) for sample in samples
        ]
        with self._transaction() as database:
            database.executemany(
                "INSERT INTO samples (run, measured, layer, side, variant, units, other_variant, other_units,"
                " latency_us, canary_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )

    def samples(self, *, are_current: bool = True) -> Iterator[Sample]:
        """Every sample that is current, or every other one that this release can read, in the order of measuring."""
        wanted = self._is_current() if are_current else f"NOT ({self._is_current()})"
        with self._reading() as database:
            for row in database.execute(
                "SELECT layer, side, variant, units, other_units, latency_us, other_variant, canary_us, run"
                f" FROM samples WHERE {wanted} ORDER BY id"
            ):
                try:
                    sample = sample_of_row(self._path, row)
                except FileFormatError:
                    if are_current:
                        raise
                    continue  # an older release had layers and parameters that this one lacks
                yield sample

    def measured_variants(self) -> VariantSets:
        """What there are current samples of."""
        return self._variants(f"SELECT DISTINCT side, layer, variant FROM samples WHERE {self._is_current()}")

    def failed_variants(self) -> VariantSets:
        """The kernels of which there are failures, and no samples that would acquit them."""
        measured = {key: _kernels(variants) for key, variants in self.measured_variants().items()}
        stands = self._stands()
        failed = self._variants(
            f"SELECT 'cpu', layer, cpu_variant FROM failures WHERE {stands}"
            f" UNION SELECT 'gpu', layer, gpu_variant FROM failures WHERE {stands}"
        )
        return {key: _kernels(variants) - measured.get(key, frozenset()) for key, variants in failed.items()}

    def _variants(self, query: str) -> VariantSets:
        """List variants by side and layer."""
        with self._reading() as database:
            rows = database.execute(query).fetchall()
        found: dict[tuple[str, AnyLayer], set[Variant]] = {}
        for side, layer, variant in rows:
            computed, by = kernel_of_row(self._path, layer, variant)
            found.setdefault((side, computed), set()).add(by)
        return {key: frozenset(variants) for key, variants in found.items()}

    def has(self, candidate: Candidate, point: Point) -> bool:
        """Whether each side that has work at a point was measured there."""
        co_run = point.cpu_units > 0 and point.gpu_units > 0
        layer, cpu, gpu = candidate_key(candidate)
        halves = [
            ("cpu", cpu, point.cpu_units, gpu, point.gpu_units),
            ("gpu", gpu, point.gpu_units, cpu, point.cpu_units),
        ]
        is_current = self._is_current()
        with self._reading() as database:
            return all(
                database.execute(
                    "SELECT 1 FROM samples WHERE layer = ? AND side = ? AND variant = ? AND units = ?"
                    f" AND other_variant IS ? AND other_units = ? AND {is_current} LIMIT 1",
                    (layer, side, variant, units, other if co_run else None, other_units),
                ).fetchone()
                for side, variant, units, other, other_units in halves
                if units
            )

    def add_failure(self, candidate: Candidate, message: str) -> None:
        """Store that a candidate cannot be measured."""
        row = (self._current_run(), now(), *candidate_key(candidate), message)
        with self._transaction() as database:
            database.execute(
                "INSERT INTO failures (run, failed, layer, cpu_variant, gpu_variant, message)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )

    def failure(self, candidate: Candidate) -> str | None:
        """Why a candidate could not be measured lately; None if it did not fail."""
        with self._reading() as database:
            row = database.execute(
                "SELECT message FROM failures WHERE layer = ? AND cpu_variant = ? AND gpu_variant = ?"
                f" AND {self._stands()} ORDER BY id DESC",
                candidate_key(candidate),
            ).fetchone()
        return None if row is None else str(row[0])

    def failures(self) -> dict[str, int]:
        """The reasons for which candidates cannot be measured, and how many there are of each."""
        with self._reading() as database:
            rows = database.execute(
                f"SELECT message, count(*) FROM failures WHERE {self._stands()} GROUP BY message ORDER BY count(*) DESC"
            ).fetchall()
        return dict(rows)

    def _stands(self) -> str:
        """Write the condition in SQL that a failure still counts."""
        today = datetime.now(timezone.utc)
        # of a time to come are those from before a clock was set back
        least, most = (_written(today + shift) for shift in (-_FAILURES_LAST, _FAILURES_LAST))
        return f"{self._is_current()} AND failed BETWEEN '{least}' AND '{most}'"

    def add_trial_runs(self, trial_runs: Iterable[TrialRun]) -> None:
        """Store trial runs, all or none."""
        run = self._current_run()
        rows = [(run, one.ran_at, one.network, json.dumps(one.to_json())) for one in trial_runs]
        with self._transaction() as database:
            database.executemany("INSERT INTO trial_runs (run, ran_at, network, content) VALUES (?, ?, ?, ?)", rows)

    def trial_runs(self) -> dict[str, list[TrialRun]]:
        """The current ones of each network, in the order in which they were added."""
        with self._reading() as database:
            rows = database.execute(
                f"SELECT network, ran_at, content FROM trial_runs WHERE {self._is_current()} ORDER BY id"
            ).fetchall()
        found: dict[str, list[TrialRun]] = {}
        for network, ran_at, content in rows:
            try:
                found.setdefault(network, []).append(TrialRun.from_json(network, ran_at, json.loads(content)))
            except (ValueError, KeyError, TypeError, FileFormatError) as error:
                raise damaged(self._path, f"a trial run cannot be read: {error}") from None
        return found

    def _facts(self, text: str) -> dict[str, Any]:
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise damaged(self._path, f"the facts of a run cannot be read: {error}") from None

    def _current_run(self, device: str = "") -> int:
        """The number of this run by a device, or by any where none is named; it is stored now if it is not yet.

        A device that is named goes on with no earlier run: that may be another one's.
        """
        if self._here is None:
            raise ValueError("a profile that was opened without the device's facts can only be read")
        if not device and self._runs:
            return next(iter(self._runs.values()))
        if device not in self._runs:
            with self._transaction() as database:
                row = database.execute("SELECT id, facts, generator FROM runs ORDER BY id DESC LIMIT 1").fetchone()
                if not device and row is not None and row[1:] == (self._here, GENERATOR_VERSION):
                    self._runs[device] = int(row[0])
                else:
                    added = database.execute(
                        "INSERT INTO runs (started, generator, facts) VALUES (?, ?, ?)",
                        (now(), GENERATOR_VERSION, self._here),
                    )
                    self._runs[device] = int(added.lastrowid or 0)
            self._current = None
        return self._runs[device]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as database, database:
            yield database

    def _unusable(self, error: object) -> FileFormatError:
        if str(error) == _LOCKED:
            holders = " and ".join(lockers(self._path)) or "another process"
            return FileFormatError(f"{self._path} is locked by {holders}; wait until that has ended, or end it")
        return FileFormatError(
            f"{self._path} cannot be used ({error}); free the disk, end what else writes to it, or check who may "
            "write there"
        )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._database
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from None
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise damaged(self._path, error) from None


def lack_of_room(path: Path, error: sqlite3.Error) -> OSError | None:
    """The error of a full disk, if that is what SQLite says."""
    return OSError(errno.ENOSPC, str(error), str(path)) if str(error) == _FULL else None


def _kernels(variants: Iterable[Variant]) -> frozenset[Variant]:
    """Give the kernels of some variants, whatever the number of threads."""
    return frozenset(variant.kernel for variant in variants)


def _compiler(facts: Mapping[str, Any]) -> str | None:
    versions = facts.get("versions")
    return versions.get("tvm") if isinstance(versions, dict) else None


def now() -> str:
    """Tell the time of day as ISO 8601, UTC."""
    return _written(datetime.now(timezone.utc))


def _written(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")
