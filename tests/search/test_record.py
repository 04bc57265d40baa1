"""What is kept of a search, and what survives."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from ggufrope.errors import RequestError, StorageError
from ggufrope.rope.scaling import FrequencyFactors, Linear, Unscaled, Yarn
from ggufrope.search.evaluate import CellLoss, Evaluation
from ggufrope.search.record import Record
from ggufrope.search.schemes import Scheme, decode_scheme, encode_scheme

if TYPE_CHECKING:
    from pathlib import Path

IDENTITY: dict[str, Any] = {"seed": 1, "depths": (0, 50)}
FACTORS = Scheme(
    scaling=FrequencyFactors(factors=(1.0, 1.100000023841858, 3.0), attention_factor=1.1)
)
PLAIN = Scheme(scaling=Unscaled())
EVALUATION = Evaluation(
    loss=0.1 + 0.2,
    cells=(
        CellLoss(key="512/0/0", context_tokens=512, loss=0.1, exact=True),
        CellLoss(key="512/50/0", context_tokens=512, loss=1 / 3),
    ),
    stopped=True,
    seconds=1.5,
    overhead_seconds=0.01,
)


def _line(*, scheme: dict[str, Any] | None = None, loss: Any = 0.5) -> bytes:
    """A candidate as a record has it."""
    evaluation = {"cells": [], "stopped": False, "seconds": 1, "overhead_seconds": 1, "loss": loss}
    return json.dumps(
        {
            "number": 1,
            "stage": "final",
            "fitness": "needle",
            "scheme": scheme or {"scheme": "Unscaled"},
            "haystack": 0,
            "evaluation": evaluation,
        }
    ).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "search.jsonl"


def begun(path: Path, *schemes: Scheme) -> None:
    with Record(path, IDENTITY) as record:
        for scheme in schemes:
            record.append("screening", "needle", scheme, 0, EVALUATION)


@pytest.mark.parametrize(
    "scheme",
    [
        PLAIN,
        FACTORS,
        Scheme(scaling=Yarn(factor=4, original_context=256, beta_fast=20.5)),
        Scheme(scaling=Linear(factor=2.0), freq_base=12_345.5),
    ],
    ids=lambda scheme: type(scheme.scaling).__name__,
)
def test_schemes_survive(scheme: Scheme) -> None:
    assert decode_scheme(encode_scheme(scheme)) == scheme


def test_a_candidate_is_found_again_to_the_last_digit(path: Path) -> None:
    begun(path, PLAIN, FACTORS)
    with Record(path, IDENTITY) as record:
        found = record.find("screening", "needle", FACTORS, 0)
        assert found is not None
        assert found.evaluation == EVALUATION
        assert found.number == 2
        assert record.find("screening", "needle", FACTORS, 1) is None
        assert record.find("final", "needle", FACTORS, 0) is None
        assert record.find("screening", "perplexity", FACTORS, 0) is None
        assert len(record.candidates) == 2


def test_a_line_cut_short_at_any_byte_is_dropped_and_written_over(path: Path) -> None:
    begun(path, PLAIN)
    whole = path.read_bytes()
    begun(path, FACTORS)
    more = path.read_bytes()
    for length in range(len(whole), len(more)):
        path.write_bytes(more[:length])
        with Record(path, IDENTITY) as record:
            assert [each.scheme for each in record.candidates] == [PLAIN]
            record.append("screening", "needle", FACTORS, 0, EVALUATION)
        assert path.read_bytes() == more


@pytest.mark.skipif(os.name == "nt", reason="no advisory locks here")
def test_two_searches_do_not_share_a_record(path: Path) -> None:
    with Record(path, IDENTITY), pytest.raises(StorageError, match="another ggufrope process"):
        Record(path, IDENTITY)
    begun(path)


def test_another_search_is_refused_with_what_differs(path: Path) -> None:
    begun(path)
    with pytest.raises(RequestError, match=r"another search: seed was 1; give another folder"):
        Record(path, {**IDENTITY, "seed": 2})


@pytest.mark.parametrize(
    "content",
    [
        *(b"not json\n", b"[]\n", b'{"schema":1}\n', b'{"schema":NaN}\n', b"[" * 100_000 + b"\n"),
        *(b"no line end", b"two lines\nno line end", b'{"scheme"'),
    ],
    ids=["words", "list", "schema", "nan", "deep", "no line", "half a line", "of another"],
)
def test_a_file_that_is_no_record_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises((StorageError, RequestError), match=r"search\.jsonl"):
        Record(path, IDENTITY)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"number":1}', "not a record of a search"),
        (b"[]", "not a record of a search"),
        (_line(scheme={"scheme": "math"}), "not a record of a search"),
        (_line(scheme={"scheme": "Linear", "factor": "four"}), "factor must be a number"),
        (_line(loss="x"), "loss must be a number"),
        (_line().replace(b'"final"', b"[]"), "stage"),
        (_line().replace(b'"final"', b'"lunch"'), "stage 'lunch'"),
        (_line().replace(b'"needle"', b"{}"), "fitness {}"),
        (_line().replace(b'"haystack": 0', b'"haystack": true'), "haystack True"),
        (_line().replace(b"0.5", b"NaN"), "line 2 is not JSON"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
    ids=[
        "number",
        "no table",
        "no scheme",
        "a wrong factor",
        "a wrong loss",
        "a list",
        "lunch",
        "a table",
        "true",
        "nan",
        "deep",
    ],
)
def test_a_foreign_line_is_one_clear_error(path: Path, line: bytes, message: str) -> None:
    begun(path)
    with path.open("ab") as stream:
        stream.write(line + b"\n")
    with pytest.raises(StorageError, match=message):
        Record(path, IDENTITY)


def test_a_first_line_cut_short_is_written_again(path: Path) -> None:
    begun(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        begun(path)
        assert path.read_bytes() == whole


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
def test_a_link_or_a_pipe_under_its_name_is_refused(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("precious")
    path.symlink_to(other)
    with pytest.raises(StorageError, match=r"search\.jsonl"):
        Record(path, IDENTITY)
    assert other.read_text() == "precious"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StorageError, match="no regular file"):
        Record(path, IDENTITY)


@pytest.mark.parametrize("after", ["removed", "replaced"])
def test_a_record_that_is_gone_ends_the_search(path: Path, after: str) -> None:
    with Record(path, IDENTITY) as record:
        path.unlink()
        if after == "replaced":
            path.write_text("")
        with pytest.raises(StorageError, match=r"search\.jsonl"):
            record.append("screening", "needle", PLAIN, 0, EVALUATION)
        assert record.candidates == ()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="absent"):
        Record(tmp_path / "absent" / "search.jsonl", IDENTITY)
