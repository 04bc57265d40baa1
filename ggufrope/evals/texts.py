"""Texts for perplexity and divergence: Python's help topics or the user's file, as tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufrope import _files
from ggufrope.errors import MissingDependencyError, RequestError
from ggufrope.evals.task import TaskSettings
from ggufrope.lm import LanguageModel

_UNSURE_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text to read, and where it came from."""

    source: str
    content: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the content in UTF-8: the same words are the same text, whatever the file."""
        return sha256(self.content.encode("utf-8", "surrogatepass")).hexdigest()


def reference_text() -> Text:
    """Return the topics of Python's own help, about 110,000 tokens of technical English.

    Every machine has it, but its words differ from one version of Python to the next: record the
    hash. Raises MissingDependencyError where this Python was installed without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise MissingDependencyError(
            "this Python has no pydoc_data.topics to read; give a text file"
        ) from None
    return Text(source="pydoc_data.topics", content="\n\n".join(topics[k] for k in sorted(topics)))


def read_text(path: Path) -> Text:
    """Return a user's text file, in UTF-8.

    Raises StorageError where it cannot be read, RequestError where it is empty or not text.
    """
    content = _files.read_text(path)
    if not content.strip():
        raise RequestError(f"{path}: the text is empty")
    return Text(source=path.name, content=content)


def chosen_text(settings: TaskSettings) -> Text | None:
    """Return the text that the settings name, None where they name none.

    Raises StorageError or RequestError as `read_text` does.
    """
    return None if settings.text is None else read_text(Path(settings.text))


def haystack_text(settings: TaskSettings) -> str | None:
    """Return what a haystack of the settings repeats, None for the built-in ones.

    Raises StorageError or RequestError as `read_text` does.
    """
    file = settings.haystack.file
    return None if file is None else read_text(Path(file)).content


def tokens_of(
    model: LanguageModel, text: Text, *, at_least: int, at_most: int | None = None
) -> NDArray[np.int64]:
    """Return the tokens of a text, or its first `at_most`; BOS first where the vocabulary adds one.

    Only as much of the text is tokenized as needed, with the same tokens as the whole would have.
    Raises RequestError where the text has fewer than `at_least`.
    """
    characters = len(text.content) if at_most is None else 8 * at_most
    while True:
        tokens = model.tokenize(text.content[:characters], beginning=True)
        # The last tokens of a part may not be those of the whole.
        enough = at_most is not None and len(tokens) >= at_most + _UNSURE_TOKENS
        if enough or characters >= len(text.content):
            break
        characters *= 2
    if len(tokens) < at_least:
        raise RequestError(
            f"the text {text.source} is too short: {at_least} tokens are needed, it has "
            f"{len(tokens)}; give a longer text or a shorter context"
        )
    return np.asarray(tokens[:at_most], dtype=np.int64)


def windows_of(
    model: LanguageModel, text: Text, *, n_ctx: int, step: int, most: int | None = None
) -> Iterator[NDArray[np.int64]]:
    """Yield windows of `n_ctx` tokens, `step` apart: `most` of them, or as many as the text has.

    The first token of each becomes BOS where the vocabulary adds one. Raises RequestError where
    the text is shorter than one window.
    """
    at_most = None if most is None else n_ctx + (most - 1) * step
    tokens = tokens_of(model, text, at_least=n_ctx, at_most=at_most)
    beginning = model.tokenize("", beginning=True)
    for start in range(0, len(tokens) - n_ctx + 1, step):
        window = tokens[start : start + n_ctx].copy()
        window[: len(beginning)] = beginning
        yield window
