"""Every candidate as it was judged, appended as it is: what a search resumes from.

A file of JSON lines, the first of which says which search it is. A candidate found there is not
evaluated again, so a search that was interrupted goes through its finished part at once and ends
with the same winner. A last line cut short by a crash is dropped.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ggufrope._files import storage
from ggufrope.container.filesystem import lock
from ggufrope.errors import RequestError, StorageError
from ggufrope.rope import scaling
from ggufrope.rope.scaling import RopeScaling
from ggufrope.search.evaluate import CellLoss, Evaluation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self


Stage: TypeAlias = Literal["final", "screening", "holdout", "short", "gate"]

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A candidate judged in a stage, by one fitness of it; `number` counts from 1 over all."""

    number: int
    stage: Stage
    fitness: str
    scheme: RopeScaling
    evaluation: Evaluation

    @property
    def loss(self) -> float:
        return self.evaluation.loss

    @property
    def seconds(self) -> float:
        return self.evaluation.seconds + self.evaluation.overhead_seconds


class Record:
    """The candidates of one search, on disk."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        """Begin a record, or take up the one that is there.

        `identity` is all that the losses depend on, as JSON has it. Raises RequestError where the
        record is of another search, StorageError where it cannot be read or written, or another
        process has it open.
        """
        self._candidates: list[Candidate] = []
        self._path = path
        with storage("write", path):
            path.touch()
            self._file = path.open("r+b", buffering=0)
        try:
            lock(self._file, path)
            self._take_up(identity)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """In the order in which they were judged."""
        return tuple(self._candidates)

    @property
    def seconds(self) -> float:
        """What all of them took."""
        return sum(candidate.seconds for candidate in self._candidates)

    def find(self, stage: Stage, fitness: str, scheme: RopeScaling) -> Candidate | None:
        """The candidate of a scheme in a stage, or None."""
        for candidate in self._candidates:
            if (candidate.stage, candidate.fitness, candidate.scheme) == (stage, fitness, scheme):
                return candidate
        return None

    def append(
        self, stage: Stage, fitness: str, scheme: RopeScaling, evaluation: Evaluation
    ) -> Candidate:
        """Keep a candidate, on disk before this returns."""
        candidate = Candidate(
            number=len(self._candidates) + 1,
            stage=stage,
            fitness=fitness,
            scheme=scheme,
            evaluation=evaluation,
        )
        self._write(_encode(candidate))
        self._candidates.append(candidate)
        return candidate

    def _take_up(self, identity: dict[str, Any]) -> None:
        mine = json.loads(json.dumps({"schema": SCHEMA, "search": identity}))
        lines = list(self._whole_lines())
        if not lines:
            self._write(mine)
            return
        if lines[0] != mine:
            raise RequestError(
                f"{self._path} is the record of another search: {_difference(lines[0], mine)}; "
                "give another folder, or the same options to go on with it"
            )
        try:
            self._candidates.extend(_decode(line) for line in lines[1:])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StorageError(f"{self._path}: not a record of a search ({error!r})") from None

    def _whole_lines(self) -> Iterator[Any]:
        with storage("read", self._path):
            content = self._file.read()
            whole = content.rfind(b"\n") + 1
            self._file.truncate(whole)
            self._file.seek(whole)
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                yield json.loads(line)
            except ValueError:
                raise StorageError(f"{self._path}: line {number} is not JSON") from None

    def _write(self, plain: dict[str, Any]) -> None:
        with storage("write", self._path):
            line = json.dumps(plain, separators=(",", ":")).encode() + b"\n"
            if self._file.write(line) != len(line):
                raise StorageError(f"{self._path}: no room for another line")
            os.fsync(self._file.fileno())


def encode_scheme(scheme: RopeScaling) -> dict[str, Any]:
    """A scheme as JSON has it: its class and its fields."""
    return {"scheme": type(scheme).__name__, **asdict(scheme)}


def decode_scheme(plain: dict[str, Any]) -> RopeScaling:
    """The scheme `encode_scheme` was given."""
    kind = getattr(scaling, plain["scheme"])
    values = {field.name: plain[field.name] for field in fields(kind)}
    scheme: RopeScaling = kind(
        **{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    )
    return scheme


def _encode(candidate: Candidate) -> dict[str, Any]:
    plain = asdict(candidate)
    plain["scheme"] = encode_scheme(candidate.scheme)
    return plain


def _decode(plain: dict[str, Any]) -> Candidate:
    evaluation = dict(plain["evaluation"])
    evaluation["cells"] = tuple(CellLoss(**cell) for cell in evaluation["cells"])
    return Candidate(
        number=plain["number"],
        stage=plain["stage"],
        fitness=plain["fitness"],
        scheme=decode_scheme(plain["scheme"]),
        evaluation=Evaluation(**evaluation),
    )


def _difference(found: Any, mine: Any) -> str:
    """Which of the two identities' entries differ."""
    theirs = found.get("search") if isinstance(found, dict) else None
    if not isinstance(theirs, dict):
        return "its first line is of another kind"
    ours = mine["search"]
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    return ", ".join(f"{name} was {theirs.get(name)!s:.60}" for name in names) or "another schema"
