"""How a model is asked: as a chat model in the template of its file, or to complete a text.

A prompt is a beginning, the user's words, and an ending that begins the answer. In chat form the
beginning and the ending are what the file's template puts around a user's turn. Its special tokens
are read as such there, and nowhere else: words of a haystack cannot end the turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from ggufrope.errors import RequestError
from ggufrope.evals.chat_template import Rendering, render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ggufrope.evals.task import FormatName
    from ggufrope.lm import LanguageModel

_USER, _ASSISTANT = "GGUFROPE-USER-WORDS", "GGUFROPE-ASSISTANT-WORDS"
_THINKING = ("enable_thinking", "thinking")
"""The variables by which templates learn whether the model thinks: Qwen's, DeepSeek's."""
USUAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
"""What templates name, where the model itself is not at hand."""
_WITHOUT = "use `format` completion"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A user's turn in a chat, without the user's words.

    `beginning` and `ending` are the template's tokens around them; `ending` opens the assistant's
    turn. `user_space` and `answer_space` are the spaces that the words and the answer begin with.
    """

    beginning: tuple[int, ...]
    ending: tuple[int, ...]
    user_space: str
    answer_space: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFormat:
    """The form of the prompts for one model: chat in a `turn`, completion without one.

    `thinking` is None where there is no choice.
    """

    model: LanguageModel
    turn: Turn | None = None
    thinking: bool | None = None

    @property
    def name(self) -> Literal["chat", "completion"]:
        return "completion" if self.turn is None else "chat"

    @property
    def beginning(self) -> tuple[int, ...]:
        """The tokens before a haystack, whose sentences begin with a space each."""
        if self.turn is None:
            return tuple(self.model.tokenize("", beginning=True))
        return self.turn.beginning

    def ending(self, question: str, prefix: str) -> tuple[int, ...]:
        """Return the tokens from the end of a haystack to where the answer begins.

        `prefix` is the beginning of the answer; what follows it begins with a space.
        """
        asked = f"\nQuestion: {question}"
        if self.turn is None:
            return tuple(self.model.tokenize(f"{asked}\nAnswer:{prefix}"))
        return (*self.model.tokenize(asked), *self._answer(self.turn, prefix))

    def prompt(self, text: str, prefix: str) -> tuple[int, ...]:
        """Return the tokens of a prompt: what the user says, and the beginning of the answer."""
        if self.turn is None:
            return tuple(self.model.tokenize(text + prefix, beginning=True))
        words = self.model.tokenize(self.turn.user_space + text.strip())
        return (*self.turn.beginning, *words, *self._answer(self.turn, prefix))

    def _answer(self, turn: Turn, prefix: str) -> tuple[int, ...]:
        begun = prefix.strip()
        return (*turn.ending, *self.model.tokenize(begun and turn.answer_space + begun))

    @property
    def notes(self) -> tuple[tuple[str, str], ...]:
        """The choice, for the record of each cell."""
        notes = (("format", self.name),)
        if self.thinking is None:
            return notes
        return (*notes, ("thinking", "on" if self.thinking else "off"))


def prompt_format(
    model: LanguageModel, name: FormatName = "auto", thinking: bool | None = None
) -> PromptFormat:
    """Return the form in which a model is asked; raises what `chat_frame` does."""
    frame = chat_frame(model.chat_template, name, thinking, model.special_tokens)
    if frame is None:
        return PromptFormat(model=model)
    return PromptFormat(
        model=model,
        turn=Turn(
            beginning=_beginning(model, frame.before.rstrip(" ")),
            ending=tuple(model.tokenize(frame.after.rstrip(" "), special=True)),
            user_space=_final_spaces(frame.before),
            answer_space=_final_spaces(frame.after),
        ),
        thinking=frame.thinking,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a template puts before a user's words, and after them up to the answer.

    `thinking` is None where the template has no switch for it.
    """

    before: str
    after: str
    thinking: bool | None


def chat_frame(
    template: str | None,
    name: FormatName,
    thinking: bool | None,
    special_tokens: Mapping[str, str] = USUAL_TOKENS,
) -> Frame | None:
    """Return what a template puts around a user's words, None where a model is asked without.

    Where the template knows thinking and nothing is said of it, it is off: the answer begins at
    once. Raises RequestError where there is no template for chat, the template fails, or it has no
    switch for `thinking`; MissingDependencyError where a template is needed and jinja2 is missing.
    """
    if name == "completion" or (name == "auto" and template is None):
        if thinking is not None:
            raise RequestError(
                "`thinking` is a choice of chat models, and this one completes a text"
            )
        return None
    if template is None:
        raise RequestError(f"the file has no chat template: {_WITHOUT}")
    off, on, answered = _rendered(template, tuple(sorted(special_tokens.items())))
    if thinking is not None and off == on:
        raise RequestError("the chat template of the file has no switch for `thinking`")
    before, after = _around_user(on if thinking else off)
    if not thinking and answered.text is not None:
        # What stands before an answer may be more: a space, an empty thought, a channel.
        opened = answered.text.partition(_USER)[2].partition(_ASSISTANT)[0]
        after = opened if opened.startswith(after) else after
    return Frame(before=before, after=after, thinking=None if off == on else bool(thinking))


@lru_cache(maxsize=16)
def _rendered(template: str, special_tokens: tuple[tuple[str, str], ...]) -> tuple[Rendering, ...]:
    """Return a user's turn without thinking and with it, and one that is answered."""
    user = {"role": "user", "content": _USER}
    assistant = {"role": "assistant", "content": _ASSISTANT}
    known: dict[str, Any] = {"tools": None, "documents": None, **dict(special_tokens)}
    off, on = (dict.fromkeys(_THINKING, value) for value in (False, True))
    return render(
        template,
        [
            {**known, **off, "messages": [user], "add_generation_prompt": True},
            {**known, **on, "messages": [user], "add_generation_prompt": True},
            {**known, **off, "messages": [user, assistant], "add_generation_prompt": False},
        ],
    )


def _around_user(asking: Rendering) -> tuple[str, str]:
    """Return what a template puts before and after a user's words. Raises RequestError where it
    fails, or does not have them once."""
    if asking.text is None:
        raise RequestError(f"the chat template of the file fails: {asking.error}; {_WITHOUT}")
    before, *after = asking.text.split(_USER)
    if len(after) != 1:
        raise RequestError(
            "the chat template of the file does not contain what a user says exactly once: "
            + _WITHOUT
        )
    return before, after[0]


def _beginning(model: LanguageModel, text: str) -> tuple[int, ...]:
    """Return the tokens that begin a prompt. BOS, which the vocabulary and the template may both
    put there, is there once."""
    bos = model.tokenize("", beginning=True)
    tokens = model.tokenize(text, beginning=True, special=True)
    twice = bos and tokens[: 2 * len(bos)] == 2 * bos
    return tuple(tokens[len(bos) :] if twice else tokens)


def _final_spaces(text: str) -> str:
    return text[len(text.rstrip(" ")) :]
