"""What an evaluation needs of a language model, and nothing more.

`ggufrope.runtime` implements these protocols over llama.cpp, `ggufrope.runtime.fake`
deterministically without it. An evaluation never sees either by name.

A context holds one growing *trunk* of tokens. Questions are *branches*: they share the trunk's
cache, are evaluated together in as few batches as fit, and leave no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Tokens: TypeAlias = Sequence[int]
Progress: TypeAlias = Callable[[int], None]
"""Called with the number of tokens just evaluated."""
OpenContext: TypeAlias = Callable[[int], "LanguageContext"]
"""Opens a context of that many tokens; every other setting of it is closed over. Whoever opens a
context closes it. May raise any BackendError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A question put to the trunk: a prompt, then each of the candidate answers on its own."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerScore:
    """One candidate answer under teacher forcing.

    `log_probabilities` is nat per token, in order. `greedy` is True where every token is the
    arg max given those before it, which is exactly when greedy decoding would produce the answer.
    """

    log_probabilities: tuple[float, ...]
    greedy: bool

    @property
    def mean_log_probability(self) -> float:
        return sum(self.log_probabilities) / len(self.log_probabilities)


class LanguageContext(Protocol):
    """A trunk of tokens in a KV cache."""

    @property
    def position(self) -> int:
        """Tokens in the trunk."""
        ...

    @property
    def n_ctx(self) -> int:
        """Tokens the cache holds, as allocated."""
        ...

    def extend(self, tokens: Tokens, *, progress: Progress | None = None) -> None:
        """Append to the trunk without computing logits."""
        ...

    def rewind(self, position: int) -> None:
        """Forget the trunk's tokens from `position` on."""
        ...

    def score(self, branches: Sequence[Branch]) -> list[tuple[AnswerScore, ...]]:
        """Score every answer of every branch; the trunk is left as it was."""
        ...

    def generate(self, prompt: Tokens, *, max_tokens: int) -> list[int]:
        """Greedy continuation of trunk + prompt up to end-of-generation; the trunk is left as
        it was."""
        ...

    def logits(
        self, tokens: Tokens, *, skip: int = 0, progress: Progress | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Append to the trunk and yield logits, `[n, n_vocab]` a batch, one row per token appended
        but for the first `skip`. Those are in the same batches: where a batch ends may change
        the arithmetic of the attention.

        An array is valid until the next one is asked for.
        """
        ...

    @property
    def cache_bytes(self) -> int | None:
        """Bytes of the K and V caches as allocated, or None where the runtime does not tell."""
        ...

    @property
    def cache_rotated(self) -> bool | None:
        """Whether what goes into the K or V cache is rotated first, which changes what quantizing
        it costs; None where the runtime does not tell."""
        ...

    def close(self) -> None: ...


class LanguageModel(Protocol):
    """Weights and a tokenizer."""

    @property
    def n_vocab(self) -> int: ...

    def tokenize(self, text: str, *, beginning: bool = False) -> list[int]:
        """Tokens of plain text, as it stands after other text: no space is put in front of it, so
        that pieces tokenized apart can be joined.

        With `beginning`, as it stands at the start: preceded by BOS where the vocabulary adds one
        (of an empty text that is all), and by the space where it puts one in front.
        """
        ...

    def detokenize(self, tokens: Tokens) -> str: ...
