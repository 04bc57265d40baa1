"""The candidates of a search on disk, each appended as soon as it is judged on a haystack.

A file of JSON lines, the first of which says which search it is. What is found there is not
evaluated again, so a search that was interrupted goes through its finished part at once and ends
with the same winner. A last line cut short by a crash is dropped.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from ggufrope._files import storage, try_lock
from ggufrope._plain import decode, encode
from ggufrope.errors import RequestError, StorageError
from ggufrope.search.evaluate import Evaluation
from ggufrope.search.plan import StageName
from ggufrope.search.schemes import Scheme, decode_scheme, encode_scheme

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

SCHEMA = 4
_BINARY = getattr(os, "O_BINARY", 0)
_Place: TypeAlias = tuple[StageName, str, Scheme, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A candidate judged in a stage, by one fitness of it, on one haystack; `number` counts from 1
    over all."""

    number: int
    stage: StageName
    fitness: str
    scheme: Scheme
    haystack: int
    evaluation: Evaluation

    @property
    def loss(self) -> float:
        return self.evaluation.loss

    @property
    def seconds(self) -> float:
        return self.evaluation.seconds + self.evaluation.overhead_seconds


def read_candidates(path: Path) -> tuple[Candidate, ...]:
    """Return what a record holds so far, also while a search goes on with it.

    Raises StorageError where it is none or cannot be read.
    """
    with storage("read", path):
        content = path.read_bytes()
    lines = _lines(path, content[: content.rfind(b"\n") + 1])
    if not (lines and isinstance(lines[0], dict) and lines[0].get("schema") == SCHEMA):
        raise StorageError(f"{path} is not a record of a search by this version")
    return _decoded(path, lines[1:])


class Record:
    """The candidates of one search, on disk."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        """Begin a record, or read the one that is there.

        `identity` is all that the losses depend on, as JSON has it. Raises RequestError where the
        record is of another search, StorageError where it cannot be read or written, or another
        process has it open.
        """
        self._candidates: dict[_Place, Candidate] = {}
        self._path = path
        with storage("write", path):
            # A pipe under this name would be waited for, a link followed to a file of others.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
            descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | _BINARY, 0o666)
            self._file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                raise StorageError(f"{path} is no regular file; give another folder")
            self._lock()
            self._read(identity)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """In the order in which they were judged."""
        return tuple(self._candidates.values())

    def find(
        self, stage: StageName, fitness: str, scheme: Scheme, haystack: int
    ) -> Candidate | None:
        """Return the candidate of a scheme on a haystack of a stage, or None."""
        return self._candidates.get((stage, fitness, scheme, haystack))

    def append(
        self,
        stage: StageName,
        fitness: str,
        scheme: Scheme,
        haystack: int,
        evaluation: Evaluation,
    ) -> Candidate:
        """Keep a candidate; it is on disk before this returns."""
        candidate = Candidate(
            number=len(self._candidates) + 1,
            stage=stage,
            fitness=fitness,
            scheme=scheme,
            haystack=haystack,
            evaluation=evaluation,
        )
        self._write(_encode(candidate))
        self._keep(candidate)
        return candidate

    def _keep(self, candidate: Candidate) -> None:
        place = (candidate.stage, candidate.fitness, candidate.scheme, candidate.haystack)
        self._candidates[place] = candidate

    def _lock(self) -> None:
        with storage("lock", self._path):
            if not try_lock(self._file.fileno()):
                raise StorageError(
                    f"{self._path.parent}: another ggufrope process is searching in this folder; "
                    "wait for it, or give another folder"
                )

    def _is_in_place(self) -> bool:
        """Whether the open file is the one under its name."""
        ours, found = os.fstat(self._file.fileno()), self._path.lstat()
        return (ours.st_dev, ours.st_ino) == (found.st_dev, found.st_ino)

    def _read(self, identity: dict[str, Any]) -> None:
        mine = json.loads(json.dumps({"schema": SCHEMA, "search": identity}))
        with storage("read", self._path):
            content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if not whole and not _line(mine).startswith(content):
            raise StorageError(f"{self._path} is not a record of a search; give another folder")
        lines = _lines(self._path, content[:whole])
        if lines and lines[0] != mine:
            raise RequestError(
                f"{self._path} is the record of another search: {_difference(lines[0], mine)}; "
                "give another folder, or the same options to go on with it"
            )
        for candidate in _decoded(self._path, lines[1:]):
            self._keep(candidate)
        # Only now that it is ours: what a crash cut off goes.
        with storage("write", self._path):
            self._file.truncate(whole)
            self._file.seek(whole)
        if not lines:
            self._write(mine)

    def _write(self, plain: dict[str, Any]) -> None:
        with storage("write", self._path):
            if not self._is_in_place():
                raise StorageError(f"{self._path} was replaced while the search was going on")
            line = _line(plain)
            if self._file.write(line) != len(line):
                raise StorageError(f"{self._path}: no room for another line")
            os.fsync(self._file.fileno())


def _lines(path: Path, content: bytes) -> list[Any]:
    lines = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            lines.append(json.loads(line, parse_constant=_refuse_constant))
        except ValueError:
            raise StorageError(f"{path}: line {number} is not JSON") from None
        except RecursionError:
            raise StorageError(
                f"{path}: line {number} is not usable: its JSON is nested too deeply"
            ) from None
    return lines


def _decoded(path: Path, lines: list[Any]) -> tuple[Candidate, ...]:
    try:
        return tuple(map(_decode, lines))
    except (KeyError, TypeError, AttributeError, RequestError) as error:
        raise StorageError(f"{path}: not a record of a search ({error!r})") from None


def _line(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain, separators=(",", ":")).encode() + b"\n"


def _encode(candidate: Candidate) -> dict[str, Any]:
    plain: dict[str, Any] = encode(candidate)
    plain["scheme"] = encode_scheme(candidate.scheme)
    return plain


def _decode(plain: dict[str, Any]) -> Candidate:
    if plain["stage"] not in get_args(StageName):
        raise TypeError(f"stage {plain['stage']!r:.60}")
    for name, kind in (("number", int), ("haystack", int), ("fitness", str)):
        if type(plain[name]) is not kind:
            raise TypeError(f"{name} {plain[name]!r:.60}")
    return Candidate(
        number=plain["number"],
        stage=plain["stage"],
        fitness=plain["fitness"],
        scheme=decode_scheme(plain["scheme"]),
        haystack=plain["haystack"],
        evaluation=decode(Evaluation, plain["evaluation"]),
    )


def _refuse_constant(word: str) -> None:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(word)


def _difference(stored: Any, ours: Any) -> str:
    """Which entries of the two identities differ."""
    theirs = stored.get("search") if isinstance(stored, dict) else None
    if not isinstance(theirs, dict):
        return "its first line is of another kind"
    wanted = ours["search"]
    names = [name for name in {**wanted, **theirs} if theirs.get(name) != wanted.get(name)]
    return ", ".join(f"{name} was {theirs.get(name)!s:.60}" for name in names) or "another schema"
