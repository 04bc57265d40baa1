"""What a server really serves: the longest prompt that it takes whole, and what happens beyond.

Nothing that a server says of its context is believed. Prompts of known length are sent: a code
at the start, sentences, a code at the end, and a question. A prompt is taken whole where the
server counts all of its tokens, and where the code at the start reaches the model: it knows the
code, or what it generates changes with it. The longest such prompt is found by bisection, to the
token; what the server tells only says where to look first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from ggufrope._bisect import largest
from ggufrope.container.location import locate
from ggufrope.container.reader import read_header
from ggufrope.errors import GgufRopeError, RequestError
from ggufrope.rope.metadata import read_metadata
from ggufrope.rope.trained import scaling_in_words
from ggufrope.server.address import is_loopback
from ggufrope.server.client import ServerError
from ggufrope.server.dialect import Answer, number, part
from ggufrope.server.tokens import characters_per_token, chat_counts, only_chats

if TYPE_CHECKING:
    from collections.abc import Callable

    from ggufrope.server.dialect import ServerInfo
    from ggufrope.server.model import ServerModel

LEAST_ASKED = 256
"""Tokens: below, there is no room for the codes and the question."""
MOST_ASKED = 1 << 25
Behavior: TypeAlias = Literal["whole", "refused", "cut", "unanswered"]
"""What becomes of a prompt of the length asked. `unanswered`: every token is counted, and nothing
shows that the start reaches the model, which knows that of shorter ones."""
End: TypeAlias = Literal["start", "middle", "end"]
AtTheEnd: TypeAlias = Literal["stops", "shifts"]

_CODES = {"golden bridge": "4821376", "quiet garden": "9057614"}
_FIRST, _LAST = _CODES
"""The keys of the codes at the start and at the end of a prompt."""
_SENTENCE = " The grass is green, the sky is blue, and the sun is yellow."
_PADS = (" one", " a", " the", " and", " x")
_ANSWER_TOKENS = 12
_BEYOND = 16
"""Tokens generated to see what happens at the end of the context, from a quarter of that before."""
_NOISE = 1e-6
"""Nat: what is no difference of two answers' log-probabilities."""
_REFUSALS = (400, 413, 422, 500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a server was measured to serve.

    Lengths are in tokens: `asked` is a context with its answer, `serves` what is had of it, and
    `longest_prompt` the longest prompt taken whole, all as the server counts. `exact` is whether
    that is so to the token. `refusal` is what the server says to a longer one. Of a cut prompt,
    `dropped` names the part, `dropped_tokens` and `dropped_bytes` how much. `at_the_end` is what
    happens where an answer reaches the end of the context. `knows_start` is whether the model
    knows the code at the start of the longest prompt, None where it cannot answer such a question.
    `file` is the file that the server tells, where it is on this machine, `file_scaling` and
    `file_context` what it says. `remarks` are sentences on what does not fit together.
    """

    address: str
    info: ServerInfo
    lacks: tuple[str, ...]
    asked: int
    serves: int | None
    behavior: Behavior
    longest_prompt: int | None
    exact: bool
    refusal: str | None = None
    dropped: End | None = None
    dropped_tokens: int | None = None
    dropped_bytes: int | None = None
    at_the_end: AtTheEnd | None = None
    knows_start: bool | None = None
    file: str | None = None
    file_scaling: str | None = None
    file_context: int | None = None
    remarks: tuple[str, ...] = ()
    prompts: int = 0
    tokens_sent: int = 0

    @property
    def passed(self) -> bool:
        """Whether the server serves what was asked."""
        return self.behavior == "whole"


def measure_server(
    model: ServerModel, asked: int | None = None, *, progress: Callable[[str], None] | None = None
) -> Served:
    """Measure what the server of a model serves of a context of `asked` tokens, by default what it
    tells, or else what the model was trained for.

    Raises ServerError where even short prompts fail, RequestError for a context out of range, and
    where none is given or reported.
    """
    info = model.info
    asked = asked or info.context_tokens or info.trained_tokens
    if asked is None:
        raise RequestError("the server tells no context: give `context_tokens`, what you need")
    if not LEAST_ASKED <= asked <= MOST_ASKED:
        raise RequestError(f"`context_tokens` {asked} must be {LEAST_ASKED} to {MOST_ASKED}")
    return _Measurement(model, asked, progress or (lambda words: None)).result()


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a server did with one prompt: what it answered, or how it refused."""

    answer: Answer | None
    refusal: ServerError | None


class _Prompts:
    """Prompts of any number of tokens, for one server and one model.

    What a sentence and a word of padding take is counted by the server. Where it counts nothing, or
    the same of every prompt, that is estimated from characters, its counts are not taken, and
    `exact` is False.
    """

    def __init__(self, model: ServerModel) -> None:
        self._dialect = model.dialect
        self._chat = False
        self._counts = True
        self.sent = self.tokens_sent = 0
        self._pad, self._pad_tokens, self._sentence_tokens = _PADS[0], 1.0, 14.0
        self.exact = False
        self._around = dict.fromkeys(_CODES, self._size())
        other = self._count(self.text(0, _LAST))
        if other is not None:
            self._around[_LAST] = other
        self.least = max(self._around.values())

    def _size(self) -> int:
        """Count the parts; return the tokens of a prompt without any filler."""
        bare, longer = self._text(0, 0), self._text(7, 0)
        counts = [self._count(text) for text in (bare, longer)]
        if characters_per_token(bare, longer, counts) is None:
            self._counts = False
            return len(bare) // 3
        for pad in _PADS:
            self._pad = pad
            some, more = (self._count(self._text(0, count)) or 0 for count in (8, 24))
            if more - some == 16:
                self.exact = True
                break
        else:
            self._pad_tokens = max((more - some) / 16, 0.25)
        three, seven = (self._count(self._text(count, 0)) or 0 for count in (3, 7))
        self._sentence_tokens = max((seven - three) / 4, 1.0)
        self.exact = self.exact and self._sentence_tokens.is_integer()
        # What stands around the filler joins it otherwise than without.
        return round(three - 3 * self._sentence_tokens)

    def text(self, tokens: int, key: str = _FIRST) -> str:
        """Return a prompt of that many tokens that asks for the code of a key."""
        sentences, rest = divmod(max(tokens - self._around[key], 0), self._sentence_tokens)
        return self._text(int(sentences), int(rest / self._pad_tokens), key)

    def reach(self, tokens: int) -> bool:
        """Return whether the start of a prompt reaches the model: whether what it generates changes
        with the code there, and back with it.

        The two prompts take turns, and the first answer is not counted: a server that cuts both to
        the same finds all but that in its cache.
        """
        here = self.text(tokens)
        other = here.replace(_CODES[_FIRST], _CODES[_FIRST][::-1])
        texts = (here, other, here, other)
        _, first, between, second = (self.ask(text, max_tokens=_ANSWER_TOKENS) for text in texts)
        if first.text == second.text != between.text:
            return True
        here_sum, other_sum, again = (
            sum(one.log_probabilities) for one in (first, between, second)
        )
        return abs(other_sum - here_sum) > max(4 * abs(again - here_sum), _NOISE)

    def _text(self, sentences: int, pads: int, key: str = _FIRST) -> str:
        first, last = (f" The secret number of the {at} is {code}." for at, code in _CODES.items())
        return (
            f"{first}{_SENTENCE * sentences}{self._pad * pads}{last}\n"
            f"Question: What is the secret number of the {key}?\n"
            f"Answer: The secret number of the {key} is"
        )

    def _count(self, text: str) -> int | None:
        return self.ask(text, max_tokens=1).prompt_tokens

    def send(self, tokens: int, *, key: str = _FIRST, max_tokens: int = 1) -> _Taken:
        """Send a prompt of that many tokens; a refusal for its length is no error."""
        try:
            answer = self.ask(self.text(tokens, key), max_tokens=max_tokens)
        except ServerError as error:
            if error.status not in _REFUSALS:
                raise
            return _Taken(None, error)
        return _Taken(answer, None)

    def ask(self, text: str, *, max_tokens: int) -> Answer:
        """Return what the server makes of a text: in its chat where it completes none."""
        self.sent += 1
        if not self._chat:
            try:
                return self._counted(self._dialect.complete(text, max_tokens=max_tokens))
            except ServerError as error:
                # No refusal of the first prompt is for its length.
                if self.sent > 1 or not only_chats(self._dialect, error):
                    raise
                self._chat = True
        room = max_tokens + 2 * _ANSWER_TOKENS
        return self._counted(chat_counts(self._dialect, text, max_tokens=room))

    def _counted(self, answer: Answer) -> Answer:
        if not self._counts:
            return replace(answer, prompt_tokens=None)
        self.tokens_sent += answer.prompt_tokens or 0
        return answer


class _Measurement:
    """The steps of `measure_server`."""

    def __init__(self, model: ServerModel, asked: int, tell: Callable[[str], None]) -> None:
        self._model = model
        self._asked = asked
        self._tell = tell
        self._prompts = _Prompts(model)
        self._slack = 0 if self._prompts.exact else max(8, asked // 50)

    def result(self) -> Served:
        """Carry out the measurement."""
        prompts, info, most = self._prompts, self._model.info, self._asked - 1
        short = min(prompts.least + 64, most)
        can_answer = self._knows(short)
        self._tell(f"a prompt of {most} tokens")
        whole = prompts.send(most)
        counts = whole.answer is not None and whole.answer.prompt_tokens is not None
        behavior = self._behavior(whole, most)
        longest: int | None = most
        dropped: End | None = None
        knows: bool | None = None
        if behavior == "whole" and can_answer:
            knows = self._knows(most - _ANSWER_TOKENS)
            behavior = "whole" if knows or self._reaches(most) else "unanswered"
        if behavior == "unanswered":
            longest = largest(self._knows, short, most - _ANSWER_TOKENS - 1)
            knows = True
        elif behavior != "whole":
            longest = self._longest(whole, short, most)
            knows = self._knows(longest - _ANSWER_TOKENS) if can_answer else None
        elif not counts and not can_answer:
            longest = None
        if behavior == "cut":
            dropped = self._dropped(most) if can_answer else None
        lost = None if longest is None or behavior in ("whole", "refused") else most - longest
        at_end = self._at_the_end(longest) if behavior in ("cut", "refused") and longest else None
        file, scaling, context = self._file()
        return Served(
            address=self._model.client.address,
            info=info,
            lacks=self._model.lacks,
            asked=self._asked,
            serves=None if longest is None else self._serves(longest),
            behavior=behavior,
            longest_prompt=longest,
            exact=prompts.exact,
            refusal=None if whole.refusal is None else str(whole.refusal),
            dropped=dropped,
            dropped_tokens=lost,
            dropped_bytes=None if lost is None else self._bytes(most, lost),
            at_the_end=at_end,
            knows_start=knows,
            file=file,
            file_scaling=scaling,
            file_context=context,
            remarks=tuple(
                self._remarks(
                    longest, context, can_answer=can_answer, lost=behavior == "whole" and not knows
                )
            ),
            prompts=prompts.sent,
            tokens_sent=prompts.tokens_sent,
        )

    def _reaches(self, tokens: int) -> bool:
        self._tell("whether the start of the prompt reaches the model")
        return self._prompts.reach(tokens - _ANSWER_TOKENS)

    def _behavior(self, taken: _Taken, tokens: int) -> Behavior:
        if taken.answer is None:
            return "refused"
        counted = taken.answer.prompt_tokens
        return "whole" if counted is None or counted >= tokens - self._slack else "cut"

    def _longest(self, first: _Taken, low: int, high: int) -> int:
        """Return the longest prompt taken whole, of at least `low` and less than `high` tokens."""

        def whole(tokens: int) -> bool:
            self._tell(f"a prompt of {tokens} tokens")
            return self._behavior(self._prompts.send(tokens), tokens) == "whole"

        for hint in self._hints(first):
            for tokens in (hint - 1, hint, hint + 1):
                if low < tokens < high:
                    low, high = (tokens, high) if whole(tokens) else (low, tokens)
        return largest(whole, low, high - 1)

    def _hints(self, first: _Taken) -> Iterator[int]:
        """Yield lengths near which the limit may lie: as reported, as refused, as counted."""
        found = [self._model.info.context_tokens]
        if first.refusal is not None:
            found.append(number(part(first.refusal.body, "error", "n_ctx")))
        if first.answer is not None:
            found.append(first.answer.prompt_tokens)
        yield from dict.fromkeys(each for each in found if each is not None)

    def _knows(self, tokens: int, key: str = _FIRST) -> bool:
        """Return whether the model knows the code of a key in a prompt."""
        taken = self._prompts.send(tokens, key=key, max_tokens=_ANSWER_TOKENS)
        return taken.answer is not None and _CODES[key] in taken.answer.text

    def _dropped(self, tokens: int) -> End | None:
        """Return which part of a cut prompt is gone; without its end there is no question. None
        where no room for an answer was left."""
        if self._knows(tokens):
            return "middle"
        taken = self._prompts.send(tokens, key=_LAST, max_tokens=_ANSWER_TOKENS)
        if taken.answer is None:
            return None
        if _CODES[_LAST] in taken.answer.text:
            return "start"
        generated = taken.answer.generated_tokens
        return None if generated is not None and generated < _ANSWER_TOKENS else "end"

    def _at_the_end(self, longest: int) -> AtTheEnd | None:
        """Return what happens where an answer goes on beyond the context; None where the server
        refuses to begin, or the answer ends by itself."""
        taken = self._prompts.send(longest + 1 - _BEYOND // 4, max_tokens=_BEYOND)
        answer = taken.answer
        if answer is None or answer.generated_tokens is None or answer.prompt_tokens is None:
            return None
        if answer.cut or answer.generated_tokens >= _BEYOND:
            return "shifts"
        ends = answer.prompt_tokens + answer.generated_tokens
        return "stops" if abs(ends - longest - 1) <= 1 else None

    def _serves(self, longest: int) -> int:
        """Return the context that a longest prompt means: as reported where that is the same but
        for the token that is generated."""
        reported = self._model.info.context_tokens
        if reported is not None and reported - longest in (0, 1):
            return reported
        return longest + 1

    def _bytes(self, tokens: int, lost: int) -> int:
        """Return how many bytes of a prompt its lost tokens are, on average."""
        return round(len(self._prompts.text(tokens).encode()) * lost / tokens)

    def _file(self) -> tuple[str | None, str | None, int | None]:
        """Return the path, the scaling and the context of the file that the server tells, where it
        is on this machine."""
        path = self._path()
        if path is None or not os.path.isfile(path):  # noqa: PTH113 (a server's name may be none)
            return None, None, None
        try:
            metadata = read_metadata(read_header(path))
        except GgufRopeError:
            return None, None, None
        return str(path), scaling_in_words(metadata) or "none", metadata.context_length

    def _path(self) -> Path | None:
        info = self._model.info
        if not is_loopback(self._model.client.address):
            return None
        if info.path is not None:
            return Path(info.path)
        if info.dialect == "Ollama" and info.digest is not None:
            try:
                return locate(f"ollama:{info.model}")
            except GgufRopeError:
                return None
        return None

    def _remarks(
        self, longest: int | None, file_context: int | None, *, can_answer: bool, lost: bool
    ) -> Iterator[str]:
        info = self._model.info
        serves = None if longest is None else self._serves(longest)
        if (
            serves is not None
            and info.context_tokens not in (None, serves)
            and (serves < self._asked or (info.context_tokens or 0) < serves)
        ):
            reported = info.context_tokens
            yield f"the server reports a context of {reported} tokens; measured: {serves}"
        trained = info.trained_tokens
        if file_context is not None and trained not in (None, file_context):
            yield (
                f"the file declares {file_context} tokens and the server says {trained}: it was "
                "started with YaRN flags, or its metadata was overridden"
            )
        if trained is not None and serves == trained < self._asked:
            if info.dialect == "llama-server":
                yield (
                    f"llama-server caps every slot at the {trained} tokens that the model declares "
                    "(linear and NTK flags do not raise that): patch the file, or override its "
                    "context_length"
                )
        elif serves is not None and serves < self._asked <= (trained or 0):
            yield f"the model is made for {trained} tokens: start the server with a longer context"
        if can_answer and lost:
            yield (
                "the whole prompt reaches the model, which does not find what stands at its start: "
                "`validate` tells how far its recall holds"
            )
        if not can_answer:
            yield (
                "the model does not answer a question about a short text: what it knows of a "
                "prompt cannot be seen, only what the server counts"
            )
