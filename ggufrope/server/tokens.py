"""Texts as tokens, for a server: by its own tokenizer, or in pieces where it has none.

Pieces are runs of characters, as many as a token has on average; what that is, the server's counts
of two texts tell. So lengths are right to about a tenth, and the texts are exact.

A server that puts a user's words into the model's template itself gets the words alone. Its "chat
template" here are two marks around them, which are no text of any vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from ggufrope.server.client import ServerError
from ggufrope.server.dialect import UnsaidError

if TYPE_CHECKING:
    from ggufrope.server.dialect import Answer, Dialect

USER, ASSISTANT, _ROOM = -1, -2, -3
"""The tokens that stand for the beginning of a user's turn and of the answer, and for tokens whose
place is kept."""
CHAT_WORDS = 64
"""Tokens that a chat model may say besides the answer."""
_MARKS = {
    # Room for what a template puts around a turn; many are shorter.
    "<|ggufrope-user|>": [USER, *[_ROOM] * 47],
    "<|ggufrope-assistant|>": [ASSISTANT, *[_ROOM] * CHAT_WORDS],
}
TEMPLATE = (
    "{% for message in messages %}<|ggufrope-{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|ggufrope-assistant|>{% endif %}"
)
_MARK = re.compile("(" + "|".join(map(re.escape, _MARKS)) + ")")
_ANCHOR = "\n"
_SAMPLE = (
    " The river had been low since the spring, and the boats of the ferry company lay on the mud "
    "beside the old warehouse. Nobody in the village could remember a year like it. Some people "
    "said that the new dam had taken the water, but most of them kept that to themselves. "
    "She counted the steps down to the landing every morning, and wrote the number into a small "
    "green notebook before she went to work."
)
_USUAL_CHARACTERS = 3.5
_TEMPLATE_TOKENS = 512
"""More than what a server puts around a prompt: its template, with a system prompt."""
_ANY = 1 << 48
_FEWEST_CHARACTERS, _MOST_CHARACTERS = 0.5, 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many tokens a prompt has as it was `sent`, and what a server that took it whole counts:
    `least` to `most`."""

    sent: int
    least: int
    most: int


class ServerTokens:
    """The tokenizer of a server. A text is sent once."""

    exact = True

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._known: dict[tuple[str, bool, bool], list[int]] = {}
        self.beginning = self._plain("", beginning=True, special=False)

    def tokenize(self, text: str, *, beginning: bool, special: bool) -> list[int]:
        """Return the tokens of a text as in `LanguageModel`; marks are tokens where `special`."""
        tokens = list(self.beginning) if beginning else []
        for number, part in enumerate(_MARK.split(text) if special else [text]):
            if number % 2:
                tokens += _MARKS[part]
            elif part and beginning and not number:
                tokens = list(self._plain(part, beginning=True, special=special))
            elif part:
                tokens += self._after(part, special)
        return tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self._dialect.detokenize(tokens) if tokens else ""

    def expected(self, tokens: Sequence[int]) -> Count:
        """Return how many tokens a server should count of a prompt."""
        sent = sum(token >= 0 for token in tokens)
        if self._dialect.takes_tokens and USER not in tokens:
            return Count(sent=sent, least=sent, most=sent + 1)
        slack = 8 + sent // 50
        return Count(sent=sent, least=sent - slack, most=sent + slack + _TEMPLATE_TOKENS)

    def _after(self, text: str, special: bool) -> list[int]:
        """Return the tokens of a text after other text: vocabularies that put a space before every
        text put it before the anchor."""
        anchor = self._plain(_ANCHOR, beginning=False, special=special)
        tokens = self._plain(_ANCHOR + text, beginning=False, special=special)
        if tokens[: len(anchor)] == anchor:
            return tokens[len(anchor) :]
        return self._plain(text, beginning=False, special=special)

    def _plain(self, text: str, *, beginning: bool, special: bool) -> list[int]:
        key = text, beginning, special
        if key not in self._known:
            found = self._dialect.tokenize(text, beginning=beginning, special=special)
            self._known[key] = found
        return self._known[key]


class Pieces:
    """Runs of characters in the place of tokens, numbered as they are first seen.

    `counted` is whether the server's counts say how long they are.
    """

    exact = False
    beginning: Sequence[int] = ()

    def __init__(self, dialect: Dialect) -> None:
        """Ask the server how many tokens two texts have. Raises ServerError."""
        self._numbers: dict[str, int] = {}
        self._texts: list[str] = []
        short, long = ("One." + _SAMPLE, "Two." + 3 * _SAMPLE)
        counts = [_first_word(dialect, text).prompt_tokens for text in (short, long)]
        characters = characters_per_token(short, long, counts)
        self.counted = characters is not None
        self._characters = characters or _USUAL_CHARACTERS
        self._overhead = (counts[0] or 0) - len(short) / characters if characters else 0.0

    def tokenize(self, text: str, *, beginning: bool, special: bool) -> list[int]:
        """Return the pieces of a text; the server puts its own BOS before a prompt."""
        tokens: list[int] = []
        for number, part in enumerate(_MARK.split(text) if special else [text]):
            tokens += _MARKS[part] if number % 2 else map(self._number, self._cut(part))
        return tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of pieces."""
        return "".join(self._texts[token] for token in tokens)

    def expected(self, tokens: Sequence[int]) -> Count:
        """Return about how many tokens a server should count of a prompt; any number where it has
        counted none."""
        characters = len(self.detokenize([token for token in tokens if token >= 0]))
        sent = round(characters / self._characters + self._overhead)
        if not self.counted:
            return Count(sent=sent, least=0, most=_ANY)
        # Texts differ in their words: a quarter is more than those of haystacks do.
        slack = 16 + sent // 4
        return Count(sent=sent, least=sent - slack, most=sent + slack + _TEMPLATE_TOKENS)

    def _cut(self, text: str) -> list[str]:
        count = ceil(len(text) / self._characters)
        ends = [round(len(text) * (number + 1) / count) for number in range(count)]
        pieces = [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        return [piece for piece in pieces if piece]

    def _number(self, piece: str) -> int:
        if piece not in self._numbers:
            self._numbers[piece] = len(self._texts)
            self._texts.append(piece)
        return self._numbers[piece]


def characters_per_token(one: str, other: str, counts: Sequence[int | None]) -> float | None:
    """Return how many characters a token has, by a server's counts of two texts, the shorter one
    first; None where they cannot be true, as a count that is always the same."""
    least, most = counts
    if least is None or most is None or least >= most:
        return None
    found = (len(other) - len(one)) / (most - least)
    return found if _FEWEST_CHARACTERS < found < _MOST_CHARACTERS else None


def only_chats(dialect: Dialect, refusal: ServerError) -> bool:
    """Return whether a server that refuses to complete a short text may answer it in its chat."""
    return dialect.chats and refusal.status in (400, 404, 405, 422, 501)


def chat_counts(dialect: Dialect, text: str, *, max_tokens: int) -> Answer:
    """Return the answer to a text in a chat, without words where none can be judged."""
    try:
        return dialect.chat(text, max_tokens=max_tokens)
    except UnsaidError as error:
        return error.answer


def _first_word(dialect: Dialect, text: str) -> Answer:
    """Return the first token after a text, by the API that the server has."""
    try:
        return dialect.complete(text, max_tokens=1)
    except ServerError as error:
        if not only_chats(dialect, error):
            raise
    return chat_counts(dialect, text, max_tokens=1)
