"""A bounded run of the fuzzer, the same every time, and a replay of its whole corpus."""

from __future__ import annotations

import pytest

from tests.fuzz.reader import CORPUS, fuzz, one_input, paths, seeds

ROUNDS = 1500


def test_the_corpus_is_replayed() -> None:
    assert len(seeds()) > 10
    for data in seeds():
        one_input(data)


def test_bounded_run() -> None:
    count, _ = fuzz(ROUNDS, seed=20)
    assert count > 150


def test_the_fuzzer_distinguishes_paths_and_passes_errors_on() -> None:
    good = (CORPUS / "small").read_bytes()
    assert paths(good) != paths(good[:30])
    with pytest.raises(TypeError):
        paths(None)  # type: ignore[arg-type]
