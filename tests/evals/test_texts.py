"""Texts: the one every machine has, the user's, and their tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ggufrope.errors import RequestError, StorageError
from ggufrope.evals.texts import Text, read_text, reference_text, tokens_of
from ggufrope.runtime.fake import FakeModel


def test_the_reference_text_is_real_and_long() -> None:
    text = reference_text()
    assert text.source == "pydoc_data.topics"
    assert len(text.content) > 300_000
    assert text.sha256 == hashlib.sha256(text.content.encode()).hexdigest()


def test_a_users_text(tmp_path: Path) -> None:
    path = tmp_path / "tale.txt"
    path.write_text("Once upon a time.", encoding="utf-8")
    assert read_text(path) == Text(source="tale.txt", content="Once upon a time.")


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b" \n", "is empty"), (b"ab\xff", "at byte 2")]
)
def test_not_a_text(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tale.txt"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_text(path)


def test_a_missing_text(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*absent\.txt: No such file"):
        read_text(tmp_path / "absent.txt")


def test_the_first_tokens_are_those_of_the_whole() -> None:
    model = FakeModel()
    text = Text(source="x", content="one two three, four. " * 500)
    whole = model.tokenize(text.content, beginning=True)
    for most in (1, 50, 700, 5000):
        tokens = tokens_of(model, text, at_least=1, at_most=most)
        assert tokens.tolist() == whole[:most]
    assert tokens_of(model, text, at_least=1).tolist() == whole
