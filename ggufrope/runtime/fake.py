"""A deterministic model for tests: the protocols of `ggufrope.lm`, no weights, no llama.cpp.

It is an induction head and nothing else. It finds the longest earlier run of tokens that equals
the last ones, and predicts the token that followed that run, with a fixed confidence, if the run
lies within a horizon. So it answers a question whose wording repeats the fact, and fails where the
fact is too far back, as a model does beyond its trained context. Every distribution is normalized,
so perplexity and divergence have a meaning too.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ggufrope.errors import DecodeError, RequestError
from ggufrope.lm import AnswerScore, Branch, Progress, Tokens
from ggufrope.runtime.batch import check_splices, log_probabilities_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_BEGIN, _END, _FIRST_BYTE = 0, 1, 2
_FIRST_PIECE = _FIRST_BYTE + 256
_SPECIAL = {_BEGIN: b"<s>", _END: b"</s>"}
_SPECIAL_TEXT = re.compile(r"(</?s>|<\|\w+\|>)")
_PIECE = re.compile(r" ?\d{1,3}| ?[^\W\d]+| ?[^\w\s]|\s")


class FakeModel:
    """A tokenizer of words and groups of up to three digits, and the settings of the induction.

    A piece gets the next free number when it is first seen, so the same calls give the same
    tokens; when `n_vocab` is used up, new pieces are spelled in bytes. `horizon` is how many
    tokens back it can look (None: any number), `shortest_match` how many tokens must repeat,
    `confidence` the probability of a token that it recalls. `<s>`, `</s>` and anything of the form
    `<|word|>` are special tokens. `lanes` is as in `LanguageModel`.
    """

    def __init__(
        self,
        *,
        n_vocab: int = 4096,
        horizon: int | None = None,
        shortest_match: int = 3,
        confidence: float = 0.9,
        chat_template: str | None = None,
        lanes: int = 1,
    ) -> None:
        self.n_vocab = n_vocab
        self.lanes = lanes
        self.horizon = horizon
        self.shortest_match = shortest_match
        self.confidence = confidence
        self.chat_template = chat_template
        self.special_tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        self._tokens: dict[bytes | str, int] = {"<s>": _BEGIN, "</s>": _END}
        self._pieces = _SPECIAL | {_FIRST_BYTE + byte: bytes([byte]) for byte in range(256)}

    def tokenize(self, text: str, *, beginning: bool = False, special: bool = False) -> list[int]:
        """Return the tokens of the text, preceded by BOS with `beginning`.

        With `special`, the texts of special tokens become those tokens.
        """
        tokens = [_BEGIN] if beginning else []
        for number, part in enumerate(_SPECIAL_TEXT.split(text) if special else [text]):
            if number % 2:  # what the pattern matches comes between what it does not
                tokens += self._intern(part, part.encode())
                continue
            for piece in _PIECE.findall(part):
                encoded = piece.encode("utf-8", "surrogateescape")
                tokens += self._intern(encoded, encoded)
        return tokens

    def close(self) -> None:
        """Do nothing: there is no memory to free."""

    def detokenize(self, tokens: Tokens) -> str:
        """Return the text of tokens; a number that is not in use has no text."""
        return b"".join(self._pieces.get(t, b"") for t in tokens).decode("utf-8", "replace")

    def next_logits(self, tokens: Tokens) -> NDArray[np.float32]:
        """Return the logits `[n_vocab]` of the token after `tokens`."""
        logits = _noise(tokens[-1] if len(tokens) else _BEGIN, self.n_vocab).copy()
        recalled = self._recall(np.asarray(tokens))
        if recalled is not None:
            others = np.delete(logits, recalled).astype(np.float64)
            odds = self.confidence / (1 - self.confidence)
            logits[recalled] = np.log(np.exp(others).sum()) + math.log(odds)
        return logits

    def _recall(self, tokens: NDArray[np.int_]) -> int | None:
        """Return the token after the longest, then latest, earlier run equal to the last tokens."""
        n, run = len(tokens), 0
        oldest = 0 if self.horizon is None else max(0, n - self.horizon)
        ends = np.arange(oldest, n - 1)  # where an earlier run may end
        while len(longer := ends[ends >= run]):
            longer = longer[tokens[longer - run] == tokens[n - 1 - run]]
            if not len(longer):
                break
            run, ends = run + 1, longer
        return int(tokens[ends[-1] + 1]) if run >= self.shortest_match else None

    def _intern(self, key: bytes | str, piece: bytes) -> Sequence[int]:
        """Return the tokens of a piece; the key of a special one is a string."""
        token = self._tokens.get(key)
        if token is None:
            token = _FIRST_PIECE + len(self._tokens) - len(_SPECIAL)
            if token >= self.n_vocab:
                return [_FIRST_BYTE + byte for byte in piece]
            self._tokens[key] = token
            self._pieces[token] = piece
        return [token]


class FakeContext:
    """A trunk over a FakeModel, with the limits and the errors of the real context.

    The calls of `extend`, `score`, `generate` and `logits` are counted from 1; those in
    `failing_calls` raise DecodeError and change nothing. `append_only` is as in `LanguageContext`.
    """

    def __init__(
        self,
        model: FakeModel,
        *,
        n_ctx: int,
        n_batch: int = 512,
        failing_calls: Sequence[int] = (),
        append_only: str | None = None,
    ) -> None:
        self.model = model
        self.n_ctx = n_ctx
        self.calls = 0
        self.closed = False
        self.append_only = append_only
        self._n_batch = n_batch
        self._failing_calls = frozenset(failing_calls)
        self._trunk: list[int] = []

    @property
    def position(self) -> int:
        """Tokens in the trunk."""
        return len(self._trunk)

    @property
    def whole_only(self) -> str | None:
        """The same as `append_only`."""
        return self.append_only

    def extend(self, tokens: Tokens, *, progress: Progress | None = None) -> None:
        """Append to the trunk."""
        self._count_call()
        self._require_room(len(tokens))
        for batch in self._batches(tokens):
            self._trunk += batch
            if progress is not None:
                progress(len(batch))

    def rewind(self, position: int) -> None:
        """Remove the trunk's tokens from `position` on."""
        if not 0 <= position <= self.position:
            raise RequestError(f"cannot rewind to {position}: the trunk has {self.position} tokens")
        if 0 < position < self.position and self.append_only:
            raise DecodeError(f"cannot rewind to {position}: {self.append_only}")
        del self._trunk[position:]

    def score(self, branches: Sequence[Branch]) -> list[tuple[AnswerScore, ...]]:
        """Score every answer of every branch."""
        self._count_call()
        if self.append_only and any(branch.splices for branch in branches):
            raise DecodeError(f"nothing can be spliced into the trunk: {self.append_only}")
        return [
            tuple(self._score(branch, answer) for answer in branch.answers) for branch in branches
        ]

    def generate(self, prompt: Tokens, *, max_tokens: int) -> list[int]:
        """Return the greedy continuation of trunk + prompt."""
        self._count_call()
        self._require_room(len(prompt))
        if not prompt:
            raise RequestError("generation needs a prompt of at least one token")
        tokens = [*self._trunk, *prompt]
        start = len(tokens)
        while len(tokens) - start < max_tokens and len(tokens) <= self.n_ctx:
            token = int(self.model.next_logits(tokens).argmax())
            if token == _END:
                break
            tokens.append(token)
        return tokens[start:]

    def logits(
        self, tokens: Tokens, *, skip: int = 0, progress: Progress | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Append to the trunk; yield one `[n, n_vocab]` per batch, after the first `skip`."""
        self._count_call()
        self._require_room(len(tokens))
        for batch in self._batches(tokens):
            rows = []
            for token in batch:
                self._trunk.append(token)
                if skip:
                    skip -= 1
                else:
                    rows.append(self.model.next_logits(self._trunk))
            if progress is not None:
                progress(len(batch))
            if rows:
                yield np.stack(rows)

    @property
    def cache_bytes(self) -> int | None:
        """None: there is no cache to measure."""
        return None

    @property
    def cache_rotated(self) -> bool | None:
        """None: there is no cache to rotate."""
        return None

    def close(self) -> None:
        """Set `closed`."""
        self.closed = True

    def _score(self, branch: Branch, answer: Tokens) -> AnswerScore:
        if not branch.prompt or not answer:
            raise RequestError("a prompt and each answer need at least one token")
        check_splices(branch.splices, self.position)
        spliced = sum(len(splice.tokens) for splice in branch.splices)
        self._require_room(spliced + len(branch.prompt) + len(answer) - 1)
        before = [*self._trunk, *branch.prompt]
        for splice in branch.splices:
            before[splice.position : splice.end] = splice.tokens
        logits = np.stack(
            [self.model.next_logits([*before, *answer[:i]]) for i in range(len(answer))]
        )
        rows = np.arange(len(answer))
        values, greedy = log_probabilities_of(logits, rows, np.asarray(answer))
        return AnswerScore(log_probabilities=tuple(values.tolist()), greedy=bool(greedy.all()))

    def _batches(self, tokens: Tokens) -> Iterator[list[int]]:
        for start in range(0, len(tokens), self._n_batch):
            yield list(tokens[start : start + self._n_batch])

    def _count_call(self) -> None:
        self.calls += 1
        if self.calls in self._failing_calls:
            raise DecodeError(f"evaluation failed: call {self.calls} is one of failing_calls")

    def _require_room(self, count: int) -> None:
        if self.position + count > self.n_ctx:
            raise DecodeError(
                f"{count} tokens do not fit after {self.position}: the context holds "
                f"{self.n_ctx}; set n_ctx higher"
            )


@lru_cache(maxsize=1024)
def _noise(seed: int, n_vocab: int) -> NDArray[np.float32]:
    """Return the logits when nothing is recalled: fixed noise that depends on one token."""
    return np.random.default_rng(seed).standard_normal(n_vocab, dtype=np.float32)
