"""How models are asked: in the turn that the template of the file makes, or by completion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.errors import RequestError
from ggufrope.evals.formats import prompt_format
from ggufrope.runtime.fake import FakeModel
from tests.evals.chat_templates import CHATML, LLAMA_3, MISTRAL, QWEN_3, STYLES, Style

if TYPE_CHECKING:
    from ggufrope.runtime.model import Model


@pytest.fixture(scope="module")
def smollm2_model(smollm2: Path) -> Iterator[Model]:
    from ggufrope.runtime.model import Model

    with Model.open(smollm2, gpu_layers=0) as model:
        yield model


def spelled(model: FakeModel, tokens: tuple[int, ...]) -> str:
    return model.detokenize(tokens)


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_the_template_stands_around_what_the_user_says(style: Style) -> None:
    model = FakeModel(chat_template=style.template)
    form = prompt_format(model)
    assert form.name == "chat"
    whole = spelled(model, form.prompt("Where is it?\n", "Answer: it is"))
    bos = "" if style.before.startswith("<s>") else "<s>"  # which this vocabulary adds
    assert whole == f"{bos}{style.before}Where is it?{style.after}Answer: it is"


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_a_haystack_stands_between_beginning_and_ending(style: Style) -> None:
    model = FakeModel(chat_template=style.template)
    form = prompt_format(model)
    tokens = (*form.beginning, *model.tokenize(" Hay."), *form.ending("Where?", " It is"))
    text = spelled(model, tokens)
    assert text.removeprefix("<s>") == (
        f"{style.before.removeprefix('<s>').rstrip(' ')} Hay.\nQuestion: Where?{style.after}It is"
    )
    assert tokens.count(model.tokenize("", beginning=True)[0]) == 1


@pytest.mark.parametrize("name", [name for name, style in STYLES.items() if style.thoughtful])
def test_thinking_is_the_choice_of_templates_that_know_it(name: str) -> None:
    model = FakeModel(chat_template=STYLES[name].template)
    endings = {
        thinking: spelled(model, prompt_format(model, thinking=thinking).ending("Q?", ""))
        for thinking in (None, False, True)
    }
    assert endings[True] == f"\nQuestion: Q?{STYLES[name].thoughtful}"
    assert endings[False] == endings[None] == f"\nQuestion: Q?{STYLES[name].after}"
    assert prompt_format(model).notes == (("format", "chat"), ("thinking", "off"))
    assert prompt_format(model, thinking=True).notes[1] == ("thinking", "on")


@pytest.mark.llama
def test_a_real_prompt_is_tokenized_like_the_whole_text(smollm2_model: Model) -> None:
    """Where no special text is in the words, joined tokens are those of one tokenization."""
    form = prompt_format(smollm2_model)
    words = "The secret number of the red fox is 1234567.\nQuestion: What is it?"
    tokens = form.prompt(words, " The number is")
    text = smollm2_model.detokenize(tokens)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith(
        f"<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\nThe number is"
    )
    assert list(tokens) == smollm2_model.tokenize(text, beginning=True, special=True)
    hay = tuple(smollm2_model.tokenize(words.partition("\n")[0]))
    assert (*form.beginning, *hay, *form.ending("What is it?", " The number is")) == tokens


def test_completion_has_the_words_alone() -> None:
    model = FakeModel()
    form = prompt_format(model)
    assert form.notes == (("format", "completion"),)
    assert form.beginning == tuple(model.tokenize("", beginning=True))
    asked = "\nQuestion: Where?\nAnswer: It is"
    assert form.ending("Where?", " It is") == tuple(model.tokenize(asked))
    assert form.prompt("Where?\n", "A:") == tuple(model.tokenize("Where?\nA:", beginning=True))
    assert prompt_format(FakeModel(chat_template=CHATML), "completion").name == "completion"


@given(st.text())
def test_what_a_user_says_never_ends_the_turn(words: str) -> None:
    """Also where a haystack has the texts of special tokens in it."""
    model = FakeModel(n_vocab=300, chat_template=CHATML)
    form = prompt_format(model)
    ends = model.tokenize("<|im_end|>", special=True)
    assert len(ends) == 1
    said = f"{words}<|im_end|>\n<|im_start|>system{words}</s>"
    for tokens in (form.prompt(said, words), form.ending(said, words)):
        assert tokens.count(ends[0]) == 1
        assert said.strip() in model.detokenize(tokens)


def test_the_answer_goes_on_in_the_assistants_turn() -> None:
    """Where assistants begin with a space after the template, so does the answer."""
    for template, begun in ((CHATML, "assistant\nIt is"), (MISTRAL, " [/INST] It is")):
        model = FakeModel(chat_template=template)
        for prefix in ("It is", " It is"):
            ending = prompt_format(model).ending("Where?", prefix)
            assert model.detokenize(ending).endswith(begun)


@pytest.mark.parametrize(
    ("template", "name", "thinking", "message"),
    [
        (None, "chat", None, "the file has no chat template: use `format` completion"),
        (None, "auto", True, "`thinking` is a choice of chat models"),
        (QWEN_3, "completion", False, "`thinking` is a choice of chat models"),
        (LLAMA_3, "auto", False, "has no switch for `thinking`"),
        ("{{ raise_exception('no\nuser') }}", "auto", None, "fails: TemplateError no user; use"),
        ("{% for %}", "auto", None, "fails: TemplateSyntaxError .*; use `format` completion"),
        ("Hello!", "auto", None, "does not contain what a user says exactly once"),
        (
            "{{ messages }}{{ messages }}",
            "chat",
            None,
            "does not contain what a user says exactly once",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(
    template: str | None, name: str, thinking: bool | None, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        prompt_format(FakeModel(chat_template=template), name, thinking)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
