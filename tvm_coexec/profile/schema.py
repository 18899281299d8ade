"""A profile's database has these tables; a file that lacks one, or is damaged, is told so."""

from __future__ import annotations

import sqlite3

VERSION = 8
"""Counts up with every change of the tables; a file of another version is refused."""

SCHEMA = f"""
PRAGMA user_version = {VERSION};
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    started TEXT NOT NULL,           -- ISO 8601, UTC
    generator INTEGER NOT NULL,      -- version of what made the kernels
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
    latency_us TEXT NOT NULL,        -- JSON: every repetition
    canary_us REAL NOT NULL          -- what the side took for the canary before and after, the less; 0: none ran
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
CREATE TABLE trial_runs (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (id),
    ran_at TEXT NOT NULL,            -- ISO 8601, UTC
    network TEXT NOT NULL,           -- what names it
    content TEXT NOT NULL            -- JSON: the plan, and every repetition of the runs and of their halves
);
"""


def fault_of(database: sqlite3.Connection) -> str | None:
    """Tell what is wrong with a file as a whole; nothing where it is a database with these tables."""
    state: str = database.execute("PRAGMA quick_check(1)").fetchone()[0]  # the first fault alone, below a heading
    if state != "ok":
        return state.splitlines()[-1]
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        return f"its version is {version} instead of {VERSION}"
    tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    missing = {"runs", "samples", "failures", "trial_runs"} - tables
    return f"it has no table {', '.join(sorted(missing))}" if missing else None
