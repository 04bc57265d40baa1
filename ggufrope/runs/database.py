"""The SQLite database of a run: made whole, checked when it is opened, and committed row by row.

Whatever another program, a failing disk or a hostile hand has made of it becomes a StorageError.
Each record is JSON in one column, and the digest of every record that was written is kept beside,
so that a record that was changed since is noticed. Write-ahead logging needs a local disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggufrope._files import storage
from ggufrope._plain import T, decode, encode
from ggufrope.errors import StorageError

FORMAT = 4

_TABLES = """
CREATE TABLE run (format INTEGER NOT NULL, created REAL NOT NULL, plan TEXT NOT NULL);
CREATE TABLE models (
    ordinal INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL, sha256 TEXT
);
CREATE TABLE files (path TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE jobs (
    ordinal INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending', worker TEXT, starts INTEGER NOT NULL DEFAULT 0,
    reason TEXT, started REAL, ended REAL
);
CREATE TABLE cells (
    job TEXT NOT NULL REFERENCES jobs (id), number INTEGER NOT NULL, status TEXT NOT NULL,
    body TEXT NOT NULL, PRIMARY KEY (job, number)
);
CREATE TABLE workers (id TEXT PRIMARY KEY, body TEXT NOT NULL, started REAL NOT NULL);
CREATE TABLE digests (sha256 TEXT PRIMARY KEY)
"""
_SCHEMA = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
_READ_SECONDS, _WRITE_SECONDS = 10, 60
"""Time to wait for another program that has the database locked."""
_BESIDE = ("-wal", "-shm", "-journal")
"""Files that SQLite makes beside a database. Left over from one that is gone, they would be taken
for the changes of the next one under its name."""


class Database:
    """The database at a path, open; for one thread."""

    _identity: tuple[int, int] | None = None
    """Which file it is, None while it is built."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Open and check it. Raises StorageError where it is not a whole database of a run."""
        self.path = path
        self._connection = _connect(path, _WRITE_SECONDS if writable else _READ_SECONDS)
        try:
            with self.reading():
                self._check()
                if writable:
                    self.execute("PRAGMA journal_mode = WAL")
                    self.execute("PRAGMA synchronous = FULL")
            with storage("read", path):
                self._identity = _identity(path)
        except BaseException:
            self.close()
            raise

    @classmethod
    def build(cls, path: Path, fill: Callable[[Database], None]) -> None:
        """Make a database, filled by a function, under another name first: it is whole or not
        there. Raises StorageError."""
        building = path.with_name(f"{path.name}.building")
        _remove(building, *_BESIDE, "")
        database = cls.__new__(cls)
        database.path = building
        database._connection = _connect(building, _WRITE_SECONDS)
        try:
            with database.transaction():
                for statement in _TABLES.split(";"):
                    database.execute(statement)
                fill(database)
        finally:
            database.close()
        _remove(path, *_BESIDE)
        with storage("write", path):
            building.replace(path)

    def close(self) -> None:
        self._connection.close()

    def execute(self, statement: str, *parameters: object) -> None:
        """Carry out a statement in a transaction."""
        self._connection.execute(statement, tuple(map(_storable, parameters)))

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return every row of a query."""
        return self._connection.execute(statement, tuple(map(_storable, parameters))).fetchall()

    def dump(self, record: object, *, exact: bool = False) -> str:
        """Return a record as the text to store, in the transaction that stores it; `exact` also
        keeps numbers without end and absent fields."""
        body = json.dumps(encode(record, exact=exact), allow_nan=exact)
        self.execute("INSERT OR IGNORE INTO digests VALUES (?)", _digest(body))
        return body

    def load(self, kind: type[T], body: str) -> T:
        """Return the record of a text that `dump` made. Raises ValueError for any other text."""
        if not self.rows("SELECT 1 FROM digests WHERE sha256 = ?", _digest(body)):
            raise ValueError(f"a record of it is not as it was written: {body[:60]!r}")
        return decode(kind, json.loads(body))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn whatever a damaged database leads to into a StorageError."""
        try:
            yield
        except (
            sqlite3.Error,
            ValueError,
            TypeError,
            IndexError,
            OverflowError,
            RecursionError,
        ) as error:
            if _is_locked(error):
                raise StorageError(_locked(self.path)) from error
            raise StorageError(
                f"{self.path}: not a readable database of a run: {error}; put back a copy of it, "
                "or give another folder"
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, on disk when the block ends. Raises StorageError."""
        if self._identity is not None:
            with storage("write", self.path):
                if _identity(self.path) != self._identity:
                    raise StorageError(f"{self.path} was replaced while the run was going on")
        try:
            self.execute("BEGIN IMMEDIATE")
            yield
            self.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            if _is_locked(error):
                raise StorageError(_locked(self.path)) from error
            raise StorageError(f"{self.path}: cannot write the run's database: {error}") from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        # A full disk has ended the transaction already.
        if self._connection.in_transaction:
            self.execute("ROLLBACK")

    def _check(self) -> None:
        """Raise ValueError or sqlite3.Error where the database is not whole or not a run's."""
        # A view or trigger could make a query endless.
        if self.rows("SELECT 1 FROM sqlite_master WHERE type NOT IN ('table', 'index')"):
            raise ValueError("it has a view or a trigger")
        found = self.rows("SELECT format FROM run")
        if len(found) != 1:
            raise ValueError(f"it describes {len(found)} runs")
        if found[0][0] != FORMAT:
            raise StorageError(
                f"{self.path}: written in format {found[0][0]}, this version reads {FORMAT}; "
                "give another folder"
            )
        if self.rows(_SCHEMA) != _expected_schema():
            raise ValueError("its tables are not those of this version")
        ((answer,),) = self.rows("PRAGMA integrity_check(1)")
        if answer != "ok":
            raise ValueError(answer)


def _expected_schema() -> list[tuple[Any, ...]]:
    empty = sqlite3.connect(":memory:")
    try:
        for statement in _TABLES.split(";"):
            empty.execute(statement)
        return empty.execute(_SCHEMA).fetchall()
    finally:
        empty.close()


def _connect(path: Path, seconds: float) -> sqlite3.Connection:
    name: str | Path = path
    # In a folder that cannot be written, SQLite opens only what is said to be at rest.
    at_rest = not path.with_name(f"{path.name}-wal").exists()
    if path.exists() and at_rest and not os.access(path.parent, os.W_OK):
        name = f"{path.absolute().as_uri()}?immutable=1"
    try:
        return sqlite3.connect(name, timeout=seconds, isolation_level=None, uri=name is not path)
    except sqlite3.Error as error:
        raise StorageError(f"{path}: cannot open the run's database: {error}") from error


def _remove(path: Path, *endings: str) -> None:
    with storage("write", path):
        for ending in endings:
            path.with_name(path.name + ending).unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _storable(value: object) -> object:
    """Return a parameter as SQLite takes it: bytes of a name that are not UTF-8 become escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def _digest(body: str) -> str:
    if not isinstance(body, str):
        raise ValueError(f"a record of it is no text: {body!r:.60}")
    return hashlib.sha256(body.encode()).hexdigest()


def _is_locked(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def _locked(path: Path) -> str:
    return (
        f"{path} is locked by another program; close what has it open, then give the same command "
        "again"
    )
