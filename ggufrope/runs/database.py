"""The run's SQLite database: its tables, and how records go in and come out."""

from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import StorageError
from . import records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TABLES = """
CREATE TABLE run (format INTEGER NOT NULL, created REAL NOT NULL);
CREATE TABLE models (
    ordinal INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL, sha256 TEXT
);
CREATE TABLE jobs (
    ordinal INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, model TEXT NOT NULL, body TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending', worker TEXT, deaths INTEGER NOT NULL DEFAULT 0,
    reason TEXT, started REAL, ended REAL
);
CREATE TABLE cells (
    job TEXT NOT NULL REFERENCES jobs (id), number INTEGER NOT NULL, status TEXT NOT NULL,
    body TEXT NOT NULL, PRIMARY KEY (job, number)
);
CREATE TABLE workers (id TEXT PRIMARY KEY, body TEXT NOT NULL, started REAL NOT NULL);
"""


def connect(path: Path, *, wal: bool = True) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(path, timeout=60, isolation_level=None)
        if wal:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error as error:
        raise StorageError(f"{path}: cannot open the run's database: {error}") from error
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and nobody else writes meanwhile."""
    try:
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")
    except sqlite3.Error as error:
        raise StorageError(f"the run's database cannot be written: {error}") from error


def dump(record: object) -> str:
    return json.dumps(records.encode(record), allow_nan=False)


def load(kind: type[records.T], body: str) -> records.T:
    return records.decode(kind, json.loads(body), where="the run's database")
