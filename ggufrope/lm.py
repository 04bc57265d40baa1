"""What an evaluation needs of a language model, and nothing more.

`ggufrope.runtime` implements these protocols with llama.cpp, `ggufrope.runtime.fake`
deterministically and without it. An evaluation imports neither.

A context holds one growing *trunk* of tokens. Questions are *branches*: they share the trunk's
cache, are evaluated together in as few batches as fit, and leave the trunk as it was. A branch may
see other tokens in the place of some of the trunk's: its *splices*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Tokens: TypeAlias = Sequence[int]
Progress: TypeAlias = Callable[[int], None]
"""A function called with the number of tokens just evaluated."""
OpenContext: TypeAlias = Callable[[int], "LanguageContext"]
"""Opens a context of that many tokens; every other setting of it is closed over. Whoever opens a
context closes it. May raise any BackendError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splice:
    """Tokens that stand from `position` on, in the place of as many tokens of the trunk."""

    position: int
    tokens: tuple[int, ...]

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.position + len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A question about the trunk: a prompt, and candidate answers that each follow it alone.

    It sees the trunk with its `splices`, which are in order and do not overlap. Only the splices
    are evaluated: what the trunk has behind them was evaluated without them in view.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    splices: tuple[Splice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerScore:
    """The score of one candidate answer under teacher forcing.

    `log_probabilities` is nat per token, in order; empty where the runtime does not say it.
    `greedy` is True where every token is the arg max given those before it, which is exactly when
    greedy decoding would produce the answer. `prompt_tokens` is how long the runtime says that the
    prompt was, None where it evaluates exactly the tokens that it is given.
    """

    log_probabilities: tuple[float, ...]
    greedy: bool
    prompt_tokens: int | None = None

    @property
    def mean_log_probability(self) -> float | None:
        """Nat per token, None where it is not known."""
        if not self.log_probabilities:
            return None
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

    @property
    def append_only(self) -> str | None:
        """Why the trunk can only be extended, asked at its end, or rewound to 0.

        None where it can be rewound to any position.
        """
        ...

    @property
    def whole_only(self) -> str | None:
        """Why branches cannot have splices, None where they can. A trunk that is `append_only` has
        none."""
        ...

    def rewind(self, position: int) -> None:
        """Remove the trunk's tokens from `position` on."""
        ...

    def score(self, branches: Sequence[Branch]) -> list[tuple[AnswerScore, ...]]:
        """Score every answer of every branch; leave the trunk as it was, also where one fails."""
        ...

    def generate(self, prompt: Tokens, *, max_tokens: int) -> list[int]:
        """Return the greedy continuation of trunk + prompt, up to the end of generation.

        The trunk stays as it was.
        """
        ...

    def logits(
        self, tokens: Tokens, *, skip: int = 0, progress: Progress | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Append to the trunk and yield logits: one array `[n, n_vocab]` per batch.

        There is one row per token, except for the first `skip` tokens. Those are in the same
        batches, because the place where a batch ends may change the arithmetic of attention.

        An array is valid until the next one is read.
        """
        ...

    @property
    def cache_bytes(self) -> int | None:
        """Bytes of the K and V caches as allocated; None where the runtime does not say."""
        ...

    @property
    def cache_rotated(self) -> bool | None:
        """Whether K or V values are rotated before they are stored; None where it is unknown.

        This changes what quantizing them costs.
        """
        ...

    def close(self) -> None: ...


class LanguageModel(Protocol):
    """Weights and a tokenizer."""

    @property
    def n_vocab(self) -> int: ...

    @property
    def lanes(self) -> int:
        """How many contexts evaluate side by side; 1 where one would only slow the other."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the template for chats, as the file has it: hostile text."""
        ...

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The texts of the tokens that templates name: `bos_token`, `eos_token`, where there
        are."""
        ...

    def tokenize(self, text: str, *, beginning: bool = False, special: bool = False) -> list[int]:
        """Return the tokens of plain text, as it stands after other text.

        No space is added before it, so pieces that are tokenized separately can be joined. With
        `beginning`, the text stands at the start: BOS and a space precede it where the vocabulary
        adds them. Of an empty text, only BOS is left. With `special`, the texts of special tokens
        become those tokens.
        """
        ...

    def detokenize(self, tokens: Tokens) -> str: ...
