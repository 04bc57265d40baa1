"""What every dialect of server API gives: what the server tells, and answers to prompts.

A dialect says what it cannot give in `ServerInfo.lacks`, so that it is named once. What answers are
worth is for others to judge: a count of tokens is what the server reports, not what is true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ggufrope.server.client import ServerError

if TYPE_CHECKING:
    from ggufrope.server.client import Json

Prompt: TypeAlias = str | tuple[int, ...]
"""A prompt as text, which the server tokenizes and puts its BOS before, or as tokens."""
OnTokens: TypeAlias = Callable[[int], None]
"""Called with how many tokens of the prompt have been evaluated so far."""

NO_LOG_PROBABILITIES = "log-probabilities (answers are judged by what is generated)"
NO_TOKENS = "a tokenizer (lengths are estimated from characters, and counted by the server)"
NO_REUSE = "the reuse of a prompt's beginning (each is evaluated from its first token)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server says of itself and of one model; None where it does not say.

    `context_tokens` is the context of one prompt with its answer, `trained_tokens` that of the
    model. `path` and `digest` are the model file's. `settings` are further names and values that
    bear on long prompts. `lacks` says what the dialect cannot give, one sentence each.
    """

    dialect: str
    model: str
    context_tokens: int | None = None
    trained_tokens: int | None = None
    slots: int = 1
    build: str | None = None
    path: str | None = None
    digest: str | None = None
    file_size: int | None = None
    chat_template: str | None = None
    special_tokens: tuple[tuple[str, str], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server generated, and what it says of the prompt.

    `tokens` and `log_probabilities` are empty where the dialect has none; else there is one for
    each token generated, nat per token before any sampling. `prompt_tokens` and `generated_tokens`
    are counts as reported. `cut` is whether the server says that it dropped tokens to answer.
    """

    text: str
    tokens: tuple[int, ...] = ()
    log_probabilities: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    cut: bool = False


class UnsaidError(ServerError):
    """A model generated and gave no answer that can be judged; `answer` has the counts."""

    def __init__(self, message: str, answer: Answer) -> None:
        super().__init__(message)
        self.answer = answer


class Dialect(Protocol):
    """One API of servers, for one model of one server.

    `tokenizes` is whether it has a tokenizer, `takes_tokens` whether prompts may be tokens. `chats`
    is whether the server puts a user's words into the template of the model itself.
    """

    @property
    def info(self) -> ServerInfo: ...

    @property
    def tokenizes(self) -> bool: ...

    @property
    def takes_tokens(self) -> bool: ...

    @property
    def chats(self) -> bool: ...

    def ask_again(self) -> ServerInfo:
        """Return what the server tells now. Raises ServerError."""
        ...

    def tokenize(self, text: str, *, beginning: bool, special: bool) -> list[int]:
        """Return the tokens of a text. Raises ServerError where the dialect has none."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens. Raises ServerError where the dialect has none."""
        ...

    def complete(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        lane: int = 0,
        forced: int | None = None,
        on_tokens: OnTokens | None = None,
    ) -> Answer:
        """Return the greedy continuation of a prompt; `forced` is a token that it must begin with,
        for its log-probability. Raises ServerError."""
        ...

    def chat(self, words: str, *, max_tokens: int) -> Answer:
        """Return the greedy answer to a user's words. Raises UnsaidError where there is none in
        what the model generates, and other ServerErrors."""
        ...


def number(value: Any) -> int | None:
    """Return a count from the JSON of a server, None where it is none."""
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48
    return value if usable else None


def text(value: Any, most: int = 400) -> str | None:
    """Return a short text from the JSON of a server, None where it is none."""
    return value[:most] if isinstance(value, str) and value else None


def part(body: Any, *keys: str | int) -> Any:
    """Return what lies at a path in the JSON of a server, None where nothing does."""
    for key in keys:
        if isinstance(key, str):
            body = body.get(key) if isinstance(body, dict) else None
        else:
            body = body[key] if isinstance(body, list) and -len(body) <= key < len(body) else None
    return body


def items(found: Any) -> list[Any]:
    """Return a list from the JSON of a server, an empty one where it is none."""
    return found if isinstance(found, list) else []


def required(found: Any, what: str, kind: type, where: str) -> Any:
    """Return a part of an answer. Raises ServerError where it is not of its kind."""
    if not isinstance(found, kind):
        raise ServerError(f"{where}: the answer has no {what}")
    return found


def token_list(body: Json, where: str) -> list[int]:
    """Return the `tokens` of an answer. Raises ServerError where there are none."""
    tokens = required(part(body, "tokens"), "`tokens`", list, where)
    if not all(number(token) is not None for token in tokens):
        raise ServerError(f"{where}: `tokens` has something that is no token")
    return list(tokens)
