"""A model at a server as a `LanguageModel`, and prompts to it as a `LanguageContext`.

A server keeps no trunk and splices nothing: a context remembers its trunk, and every branch is a
whole prompt. What an answer says of its prompt is compared with what was sent, so that a prompt
that a server cuts is an error and no result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import count
from typing import TYPE_CHECKING, NoReturn

from ggufrope.errors import DecodeError, RequestError
from ggufrope.lm import AnswerScore, Branch, Progress, Tokens
from ggufrope.server.client import ServerError
from ggufrope.server.dialect import NO_REUSE, Answer
from ggufrope.server.tokens import (
    ASSISTANT,
    CHAT_WORDS,
    TEMPLATE,
    USER,
    Count,
    Pieces,
    ServerTokens,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggufrope.server.client import Client
    from ggufrope.server.dialect import Dialect, ServerInfo

WHOLE_ONLY = "a server takes whole prompts"
_WORD_BEGINS, _WORD_ENDS = r"(?<!\w)(?<!\d[.,])(?<!(?<!\w)[-\u2212])", r"(?!\w|[.,]\d)"
"""Neither a part of a longer word or number, nor a number with another sign."""
_COMPARED = ("dialect", "model", "context_tokens", "build", "path", "digest")


class ServerModel:
    """One model of one server; `lanes` is how many prompts it is asked at once."""

    def __init__(self, client: Client, dialect: Dialect, *, lanes: int | None = None) -> None:
        """Ask for what is needed to measure lengths. Raises ServerError."""
        self.client = client
        self.dialect = dialect
        self.tokens = ServerTokens(dialect) if dialect.tokenizes else Pieces(dialect)
        # Some tell their context only now that they have loaded the model.
        loaded = dialect.info.context_tokens is None and not dialect.tokenizes
        self.info: ServerInfo = dialect.ask_again() if loaded else dialect.info
        self.lanes = lanes or self.info.slots
        self.window: int | None = None
        """Tokens that the server takes of a longer prompt, once two were cut to the same: others
        that are longer are not sent."""
        self._cut_to: int | None = None
        self._numbers = count()

    @property
    def n_vocab(self) -> int:
        """0: no logits of a vocabulary are ever seen."""
        return 0

    @property
    def chat_template(self) -> str | None:
        """The template that the server tells, or marks where it uses its own."""
        return TEMPLATE if self.dialect.chats else self.info.chat_template

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The texts of BOS and EOS, where the server tells them."""
        return dict(self.info.special_tokens)

    @property
    def reuses_prefixes(self) -> bool:
        """Whether the server says that it keeps the beginning of a prompt for the next."""
        return NO_REUSE not in self.info.lacks

    @property
    def lacks(self) -> tuple[str, ...]:
        """What the server cannot give, once each."""
        counted = not isinstance(self.tokens, Pieces) or self.tokens.counted
        return (*self.info.lacks, *(() if counted else ("counts of the tokens of a prompt",)))

    def tokenize(self, text: str, *, beginning: bool = False, special: bool = False) -> list[int]:
        """Return the tokens of a text, by the server's tokenizer or in pieces."""
        return self.tokens.tokenize(text, beginning=beginning, special=special)

    def detokenize(self, tokens: Tokens) -> str:
        """Return the text of tokens."""
        return self.tokens.detokenize(tokens)

    def open(self, n_ctx: int) -> ServerContext:
        """Return a context of `n_ctx` tokens, in the next lane; the server is not asked."""
        return ServerContext(self, n_ctx, lane=next(self._numbers) % self.lanes)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def note_cut(self, counted: int) -> None:
        """Remember to how many tokens a prompt was cut."""
        before, self._cut_to = self._cut_to, counted
        if before is not None and abs(counted - before) <= 8 + before // 50:
            self.window = max(before, counted)

    def require_same(self) -> None:
        """Ask again who answers, where the connection was lost since. Raises ServerError where the
        server tells something else."""
        if not self.client.lost:
            return
        now = self.dialect.ask_again()
        for item in fields(now):
            before, after = getattr(self.info, item.name), getattr(now, item.name)
            if item.name in _COMPARED and None not in (before, after) and before != after:
                name = item.name.replace("_", " ")
                raise ServerError(
                    f"{self.client.address}: the server came back as another: {name} {before} → "
                    f"{after}; results of the two do not belong together"
                )
        self.client.lost = False


class ServerContext:
    """A trunk that is sent with every question."""

    def __init__(self, model: ServerModel, n_ctx: int, *, lane: int) -> None:
        self.n_ctx = n_ctx
        self._model = model
        self._lane = lane
        self._trunk: list[int] = []
        self._unreported = 0
        self._progress: Progress | None = None

    @property
    def position(self) -> int:
        """Tokens in the trunk."""
        return len(self._trunk)

    @property
    def append_only(self) -> str | None:
        """Why every prompt is evaluated from its first token; None where beginnings are reused."""
        return None if self._model.reuses_prefixes else "the server may keep no prompt"

    @property
    def whole_only(self) -> str | None:
        """That a server takes whole prompts."""
        return WHOLE_ONLY

    @property
    def cache_bytes(self) -> int | None:
        """None: a server does not say."""
        return None

    @property
    def cache_rotated(self) -> bool | None:
        """None: a server does not say."""
        return None

    def extend(self, tokens: Tokens, *, progress: Progress | None = None) -> None:
        """Append to the trunk. Progress is reported when the server evaluates it."""
        self._trunk += tokens
        self._unreported += len(tokens)
        self._progress = progress

    def rewind(self, position: int) -> None:
        """Remove the trunk's tokens from `position` on."""
        if not 0 <= position <= self.position:
            raise RequestError(f"cannot rewind to {position}: the trunk has {self.position} tokens")
        del self._trunk[position:]

    def close(self) -> None:
        """Do nothing: a server keeps what it keeps."""

    def logits(
        self, tokens: Tokens, *, skip: int = 0, progress: Progress | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Raise RequestError: a server gives no logits."""
        return _no_logits()

    def score(self, branches: Sequence[Branch]) -> list[tuple[AnswerScore, ...]]:
        """Score every answer of every branch, each a whole prompt.

        Answers after the first have log-probabilities only, and none where the dialect has none.
        Raises DecodeError where a prompt does not fit or the server cuts it, ServerError.
        """
        if any(branch.splices for branch in branches):
            raise DecodeError(f"nothing can be spliced into the trunk: {WHOLE_ONLY}")
        return [self._score(branch) for branch in branches]

    def generate(self, prompt: Tokens, *, max_tokens: int) -> list[int]:
        """Return the greedy continuation of trunk + prompt."""
        tokens = (*self._trunk, *prompt)
        answer = self._ask(tokens, max_tokens=min(max_tokens, self.n_ctx + 1 - len(tokens)))
        return self._model.tokenize(answer.text)

    def _score(self, branch: Branch) -> tuple[AnswerScore, ...]:
        if not branch.prompt or not all(branch.answers):
            raise RequestError("a prompt and each answer need at least one token")
        tokens = (*self._trunk, *branch.prompt)
        longest = max(map(len, branch.answers))
        if len(tokens) + longest - 1 > self.n_ctx:
            raise DecodeError(
                f"{len(tokens)} tokens and an answer of {longest} do not fit: the context holds "
                f"{self.n_ctx}"
            )
        said = self._ask(tokens, max_tokens=len(branch.answers[0]))
        if said.tokens and len(said.tokens) == len(said.log_probabilities):
            return tuple(
                AnswerScore(
                    log_probabilities=self._forced(tokens, answer, said),
                    greedy=said.tokens[: len(answer)] == answer,
                    prompt_tokens=said.prompt_tokens,
                )
                for answer in branch.answers
            )
        answers = [self._model.detokenize(answer).strip() for answer in branch.answers]
        if USER in tokens:
            begun = self._model.detokenize(_turn(tokens)[1]).strip()
            given = _given(said.text, begun, answers)
        else:
            given = next((each for each in answers if _begins(said.text, each)), None)
        return tuple(
            AnswerScore(
                log_probabilities=(),
                greedy=answer == given,
                prompt_tokens=said.prompt_tokens,
            )
            for answer in answers
        )

    def _forced(self, tokens: Tokens, answer: Tokens, said: Answer) -> tuple[float, ...]:
        """Return the log-probabilities of an answer: those that generation gave as far as it said
        the same, and each further token's after those before it."""
        same = 0
        while same < min(len(answer), len(said.tokens)) and said.tokens[same] == answer[same]:
            same += 1
        values = list(said.log_probabilities[:same])
        for end in range(same, len(answer)):
            prompt = (*tokens, *answer[:end])
            one = self._model.dialect.complete(
                prompt, max_tokens=1, lane=self._lane, forced=answer[end]
            )
            self._check(prompt, one)
            if one.tokens[:1] != (answer[end],) or len(one.log_probabilities) != 1:
                raise ServerError("the server did not generate the token that it was given")
            values.append(one.log_probabilities[0])
        return tuple(values)

    def _ask(self, tokens: tuple[int, ...], *, max_tokens: int) -> Answer:
        """Return what the server generates after a prompt, which it has taken whole."""
        dialect, model = self._model.dialect, self._model
        if model.window is not None:
            self._require_whole(tokens, model.window)
        if USER in tokens:
            words, prefix = _turn(tokens)
            room = max_tokens + len(prefix) + CHAT_WORDS
            answer = dialect.chat(model.detokenize(words).strip(), max_tokens=room)
        elif dialect.takes_tokens:
            answer = dialect.complete(
                tokens, max_tokens=max_tokens, lane=self._lane, on_tokens=self._evaluated
            )
        else:
            first = model.tokens.beginning
            bare = tokens[len(first) :] if tokens[: len(first)] == tuple(first) else tokens
            room = max_tokens if model.tokens.exact else 2 * max_tokens + 8
            answer = dialect.complete(model.detokenize(bare), max_tokens=room)
        self._check(tokens, answer)
        self._report(self._unreported)
        return answer

    def _check(self, tokens: Sequence[int], answer: Answer) -> None:
        """Raise DecodeError where the server did not take the prompt whole, ServerError where it is
        another server than before."""
        self._model.require_same()
        if answer.cut:
            raise DecodeError("the server dropped a part of its context while it answered")
        counted, most = answer.prompt_tokens, self._model.info.context_tokens
        if counted is None:
            return
        expected = self._model.tokens.expected(tokens)
        if counted < expected.least:
            self._model.note_cut(counted)
        self._require_whole(tokens, counted)
        if counted > expected.most:
            raise DecodeError(
                f"the server counts {counted} tokens of a prompt of {self._length(expected)}: its "
                "count is wrong"
            )
        if most is not None and counted + (answer.generated_tokens or 0) > most + 1:
            raise DecodeError(
                f"the server counts {counted} tokens in a context of {most}: what was before is "
                "gone"
            )

    def _require_whole(self, tokens: Sequence[int], counted: int) -> None:
        expected = self._model.tokens.expected(tokens)
        if counted < expected.least:
            raise DecodeError(
                f"the server counts {counted} tokens of a prompt of {self._length(expected)}: it "
                "cut the prompt, or its count is wrong"
            )

    def _length(self, expected: Count) -> str:
        return f"{'' if self._model.tokens.exact else 'about '}{expected.sent}"

    def _evaluated(self, prompt_tokens: int) -> None:
        """Report the tokens of the trunk among the first of a prompt."""
        self._report(min(prompt_tokens, self.position) - (self.position - self._unreported))

    def _report(self, count: int) -> None:
        if count > 0:
            self._unreported -= count
            if self._progress is not None:
                self._progress(count)


def _turn(tokens: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Return a user's words, and what begins the answer: no API takes that as its beginning."""
    begin, end = tokens.index(USER), tokens.index(ASSISTANT)
    words, prefix = tokens[begin:end], tokens[end:]
    return [token for token in words if token >= 0], [token for token in prefix if token >= 0]


def _begins(said: str, answer: str) -> bool:
    """Return whether a text begins with an answer that ends where a word does."""
    return re.match(rf"\s*{re.escape(answer)}{_WORD_ENDS}", said) is not None


def _given(said: str, begun: str, answers: Sequence[str]) -> str | None:
    """Return which answer a chat model gives, in its own words; None where that is none of those
    known, or not one alone.

    Where it repeats how the answer begins, it is the first one that it names after that.
    """
    _, repeated, after = said.rpartition(begun) if begun else ("", "", said)
    either = "|".join(map(re.escape, sorted(answers, key=len, reverse=True)))
    named = re.findall(rf"{_WORD_BEGINS}(?:{either}){_WORD_ENDS}", after)
    return named[0] if named and (repeated or len(set(named)) == 1) else None


def _no_logits() -> NoReturn:
    raise RequestError("a server gives no logits")
