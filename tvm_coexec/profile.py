"""A profile: what was learned of one device, kept in a directory.

``profile.json`` names the device, the tuned families and the predictors' error; ``samples.sqlite`` holds every
repetition of every measurement, readable with plain SQL; ``cpu.ubj`` and ``gpu.ubj`` are the predictors.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import FileFormatError
from .layers import Linear, RowWise, Variant, layer_from_json, layer_to_json
from .planning.samples import Candidate, Point, Sample

FORMAT = "tvm-coexec profile"
VERSION = 1

_DESCRIPTION, _DATABASE = "profile.json", "samples.sqlite"
_BUSY_TIMEOUT_S = 30

_SCHEMA = f"""
PRAGMA user_version = {VERSION};
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    started TEXT NOT NULL,           -- ISO 8601, UTC
    facts TEXT NOT NULL              -- JSON: the device, its driver, the libraries
);
CREATE TABLE samples (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (id),
    measured TEXT NOT NULL,          -- ISO 8601, UTC
    layer TEXT NOT NULL,             -- JSON
    side TEXT NOT NULL CHECK (side IN ('cpu', 'gpu')),
    variant TEXT NOT NULL,           -- JSON: this side's
    units INTEGER NOT NULL,
    other_variant TEXT,              -- JSON: the other side's; NULL where this side was measured alone
    other_units INTEGER NOT NULL,
    latency_us TEXT NOT NULL         -- JSON: every repetition
);
CREATE INDEX samples_by_half ON samples (layer, side, variant, units, other_units);
CREATE TABLE failures (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (id),
    failed TEXT NOT NULL,            -- ISO 8601, UTC
    layer TEXT NOT NULL,             -- JSON
    cpu_variant TEXT NOT NULL,       -- JSON
    gpu_variant TEXT NOT NULL,       -- JSON
    message TEXT NOT NULL
);
CREATE INDEX failures_by_candidate ON failures (layer, cpu_variant, gpu_variant);
"""


class Profile:
    """One device's profile; make one with :meth:`create` or :meth:`open`."""

    def __init__(self, path: Path, description: dict[str, Any], database: sqlite3.Connection) -> None:
        self.path = path
        self._description = description
        self._database = database
        self._run: int | None = None

    @classmethod
    def create(cls, path: str | os.PathLike[str], facts: Mapping[str, Any]) -> Profile:
        """Make an empty profile, whole or not at all.

        Parameters
        ----------
        path
            A directory that does not exist yet, or is empty.
        facts
            What the device says of itself; ``name`` and ``driver_version`` at least.

        Raises
        ------
        FileFormatError
            There is something at ``path`` already.
        """
        path = Path(path)
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise FileFormatError(f"{path} exists already; open it to go on with its tuning, or choose another place")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            database = sqlite3.connect(partial / _DATABASE)
            database.executescript(_SCHEMA)
            database.close()
            description = {"format": FORMAT, "version": VERSION, "created": _now(), "device": dict(facts)}
            _write_json(partial / _DESCRIPTION, {**description, "families": [], "report": None, "planning": None})
            partial.chmod(0o755)
            partial.replace(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return cls.open(path, facts)

    @classmethod
    def open(cls, path: str | os.PathLike[str], facts: Mapping[str, Any] | None = None) -> Profile:
        """Open a profile to read it, and with a device's facts to add to it.

        Parameters
        ----------
        facts
            What the device at hand says of itself. Its name and its number of cores must be the profile's. Another
            driver version is warned of; what is added is then kept as another run.

        Raises
        ------
        FileFormatError
            The directory is no profile, is damaged or of another version, or belongs to another device.
        """
        path = Path(path)
        description = _read_description(path)
        if facts is not None:
            _check_device(path, description["device"], facts)
        database = _open_database(path / _DATABASE)
        profile = cls(path, description, database)
        if facts is not None:
            profile._start_run(facts)
        return profile

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database; everything added is stored already."""
        self._database.close()

    @property
    def facts(self) -> dict[str, Any]:
        """The device, as it was when the profile was made."""
        return dict(self._description["device"])

    @property
    def created(self) -> str:
        """When the profile was made: ISO 8601, UTC."""
        return str(self._description["created"])

    @property
    def families(self) -> tuple[str, ...]:
        """Operator families whose tuning is done."""
        return tuple(self._description["families"])

    @property
    def report(self) -> dict[str, Any] | None:
        """The predictors' error on samples held out of training."""
        return self._description["report"]

    @property
    def planning(self) -> Any:
        """What planning keeps of the device beside the predictors."""
        return self._description["planning"]

    def describe(
        self, *, families: Iterable[str] | None = None, report: Mapping[str, Any] | None = None, planning: Any = None
    ) -> None:
        """Store what tuning concluded; what is left out stays as it is."""
        given = {"families": None if families is None else list(families), "report": report, "planning": planning}
        self._description |= {name: value for name, value in given.items() if value is not None}
        _write_json(self.path / _DESCRIPTION, self._description)

    def predictor_path(self, side: str) -> Path:
        """Where the predictor of ``cpu`` or ``gpu`` is kept, whether it is there yet or not."""
        return self.path / f"{side}.ubj"

    def add_samples(self, samples: Iterable[Sample]) -> None:
        """Store samples at once: when this returns, they survive whatever befalls the process."""
        run, measured = self._current_run(), _now()
        rows = [(run, measured, *_half_key(sample), json.dumps(sample.latency_us)) for sample in samples]
        with self._transaction() as database:
            database.executemany(
                "INSERT INTO samples (run, measured, layer, side, variant, units, other_variant, other_units,"
                " latency_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )

    def samples(self) -> Iterator[Sample]:
        """Every sample of every run, in the order of measuring."""
        with self._reading() as database:
            for row in database.execute(
                "SELECT layer, side, variant, units, other_units, latency_us, other_variant FROM samples ORDER BY id"
            ):
                yield _sample(row)

    def has(self, candidate: Candidate, point: Point) -> bool:
        """Whether a point was measured, each side that has work in it with its variant of the candidate."""
        co_run = point.cpu_units > 0 and point.gpu_units > 0
        halves = [
            ("cpu", candidate.cpu, point.cpu_units, candidate.gpu, point.gpu_units),
            ("gpu", candidate.gpu, point.gpu_units, candidate.cpu, point.cpu_units),
        ]
        with self._reading() as database:
            return all(
                database.execute(
                    "SELECT 1 FROM samples WHERE layer = ? AND side = ? AND variant = ? AND units = ?"
                    " AND other_variant IS ? AND other_units = ? LIMIT 1",
                    (
                        _layer_text(candidate.layer),
                        side,
                        _variant_text(variant),
                        units,
                        _variant_text(other) if co_run else None,
                        other_units,
                    ),
                ).fetchone()
                for side, variant, units, other, other_units in halves
                if units
            )

    def add_failure(self, candidate: Candidate, message: str) -> None:
        """Store at once that a candidate cannot be measured, so that nobody tries it again."""
        row = (self._current_run(), _now(), *_candidate_key(candidate), message)
        with self._transaction() as database:
            database.execute(
                "INSERT INTO failures (run, failed, layer, cpu_variant, gpu_variant, message)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )

    def failure(self, candidate: Candidate) -> str | None:
        """Why a candidate could not be measured; None if it did not fail."""
        with self._reading() as database:
            row = database.execute(
                "SELECT message FROM failures WHERE layer = ? AND cpu_variant = ? AND gpu_variant = ? ORDER BY id DESC",
                _candidate_key(candidate),
            ).fetchone()
        return None if row is None else str(row[0])

    def _start_run(self, facts: Mapping[str, Any]) -> None:
        text = json.dumps(dict(facts), sort_keys=True)
        with self._transaction() as database:
            last = database.execute("SELECT id, facts FROM runs ORDER BY id DESC LIMIT 1").fetchone()
            if last is not None and last[1] == text:
                self._run = last[0]
                return
            self._run = database.execute("INSERT INTO runs (started, facts) VALUES (?, ?)", (_now(), text)).lastrowid
        if last is not None:
            _warn_of_driver(self.path, json.loads(last[1]), facts)

    def _current_run(self) -> int:
        if self._run is None:
            raise ValueError("a profile that was opened without the device's facts can only be read")
        return self._run

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as database, database:
            yield database

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._database
        except sqlite3.OperationalError as error:
            raise FileFormatError(
                f"{self.path / _DATABASE} cannot be used ({error}); free the disk, or end what else writes to it"
            ) from None
        except sqlite3.DatabaseError as error:
            raise _damaged(self.path / _DATABASE, error) from None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _layer_text(layer: Linear | RowWise) -> str:
    return json.dumps(layer_to_json(layer))


def _variant_text(variant: Variant) -> str:
    return json.dumps(variant.to_json())


def _half_key(sample: Sample) -> tuple[str, str, str, int, str | None, int]:
    other = None if sample.other_variant is None else _variant_text(sample.other_variant)
    layer, variant = _layer_text(sample.layer), _variant_text(sample.variant)
    return layer, sample.side, variant, sample.units, other, sample.other_units


def _candidate_key(candidate: Candidate) -> tuple[str, str, str]:
    return _layer_text(candidate.layer), _variant_text(candidate.cpu), _variant_text(candidate.gpu)


def _sample(row: tuple[Any, ...]) -> Sample:
    layer, side, variant, units, other_units, latency_us, other = row
    try:
        return Sample(
            layer_from_json(json.loads(layer)),
            side,
            Variant.from_json(json.loads(variant)),
            units,
            other_units,
            tuple(float(time_us) for time_us in json.loads(latency_us)),
            None if other is None else Variant.from_json(json.loads(other)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f"the profile holds a sample of layer {layer} that cannot be read ({error}); tune again"
        ) from None


def _damaged(path: Path, error: object) -> FileFormatError:
    return FileFormatError(f"{path} is damaged ({error}); restore it, or tune into another directory")


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads((path / _DESCRIPTION).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileFormatError(f"there is no profile at {path}; make one with `tvm-coexec tune --out {path}`") from None
    except ValueError as error:
        raise _damaged(path / _DESCRIPTION, error) from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise FileFormatError(f"{path} is no profile; make one with `tvm-coexec tune`")
    if description.get("version") != VERSION:
        raise FileFormatError(
            f"{path} is a profile of version {description.get('version')}, this program reads version {VERSION};"
            " tune again, or use the program that wrote it"
        )
    missing = {"created", "device", "families", "report", "planning"} - description.keys()
    if missing or not isinstance(description["device"], dict):
        raise _damaged(path / _DESCRIPTION, f"{', '.join(sorted(missing)) or 'the device'} cannot be found")
    return description


def _open_database(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_TIMEOUT_S)
    except sqlite3.OperationalError as error:
        raise _damaged(path, error) from None
    try:
        state = database.execute("PRAGMA quick_check").fetchone()[0]
        version = database.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.DatabaseError as error:
        database.close()
        raise _damaged(path, error) from None
    if state != "ok" or version != VERSION:
        database.close()
        raise _damaged(path, state if state != "ok" else f"its version is {version} instead of {VERSION}")
    return database


def _check_device(path: Path, own: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    if own.get("name") != facts["name"]:
        raise FileFormatError(
            f"the profile {path} belongs to {own.get('name')!r}, the device is {facts['name']!r};"
            " choose that device, or tune into another directory"
        )
    for side in ("cpu", "gpu"):
        counts = [len(some.get(f"{side}_cores") or ()) for some in (own, facts)]
        if counts[0] != counts[1]:
            raise FileFormatError(
                f"the profile {path} was measured with {counts[0]} {side.upper()} cores, not {counts[1]};"
                f" set --{side}-cores, or tune into another directory"
            )


def _warn_of_driver(path: Path, last: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    before, now = last.get("driver_version"), facts.get("driver_version")
    if before != now:
        warnings.warn(
            f"the profile {path} was measured with driver {before!r}, the device now has {now!r};"
            " new samples are kept as another run",
            stacklevel=4,
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file whole, so that an interrupted write leaves the old one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
