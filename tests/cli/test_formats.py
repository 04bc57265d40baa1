"""The form in which models are asked: chosen, recorded, and refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ggufrope.container.reader import read_header
from ggufrope.container.store import execute, plan_store
from ggufrope.container.types import Edits, TypedValue, ValueType
from ggufrope.container.writer import plan_rewrite
from tests.cli.conftest import Call
from tests.evals.chat_templates import CHATML, QWEN_3

pytestmark = pytest.mark.llama

RULER = ("--ctx", "1024", "--tasks", "ruler", "--ruler-tasks", "niah_single_1", "--threads", "1")

MakeChat = Callable[[str], Path]


@pytest.fixture
def chat(nano: Path, tmp_path: Path) -> MakeChat:
    """Makes the nano model a chat model with a template."""

    def make(template: str) -> Path:
        value = TypedValue(type=ValueType.STRING, value=template)
        rewrite = plan_rewrite(read_header(nano), Edits(set={"tokenizer.chat_template": value}))
        path = tmp_path / "chat.gguf"
        execute(plan_store(nano, rewrite, output=path))
        return path

    return make


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        ((), {"format": "chat", "thinking": "off"}),
        (("--thinking", "on"), {"format": "chat", "thinking": "on"}),
        (("--format", "completion"), {"format": "completion"}),
    ],
)
def test_the_choice_is_in_every_record(
    cli: Call, chat: MakeChat, options: tuple[str, ...], notes: dict[str, str]
) -> None:
    (cell,) = cli("validate", chat(QWEN_3), *RULER, *options, "--json").json["cells"]
    assert cell["status"] == "ok"
    recorded = dict(cell["notes"])
    assert {name: recorded.get(name) for name in ("format", "thinking")} == {
        "thinking": None,
        **notes,
    }


@pytest.mark.parametrize("task", ["needle", "passkey", "multikey"])
def test_every_task_with_prompts_has_the_format(cli: Call, chat: MakeChat, task: str) -> None:
    options = ("--ctx", "512", "--tasks", task, "--depths", "3", "--samples", "1", "--threads", "1")
    cells = cli("validate", chat(CHATML), *options, "--json").json["cells"]
    measured = [dict(cell["notes"]) for cell in cells if cell["status"] == "ok"]
    assert measured
    assert {notes.get("format") for notes in measured} == {"chat"}


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        ("{% for m in messages %}", (), "the chat template of the file fails: TemplateSyntaxError"),
        ("{{ 'x' * 10000000000 }}", (), "fails: MemoryError; use --format completion"),
        (CHATML, ("--thinking", "off"), "has no switch for --thinking"),
        (CHATML, ("--format", "completion", "--thinking", "on"), "--thinking is a choice of chat"),
        (CHATML, ("--format", "prose"), "--format prose: expected auto, chat, completion"),
        (CHATML, ("--thinking", "yes"), "--thinking yes: expected on, off"),
        (
            CHATML,
            ("--tasks", "perplexity", "--format", "chat"),
            "are for the tasks arithmetic, code-bug, ",
        ),
    ],
)
def test_what_cannot_be_asked_is_a_usage_error_in_one_line(
    cli: Call,
    chat: MakeChat,
    tmp_path: Path,
    template: str,
    options: tuple[str, ...],
    message: str,
) -> None:
    run = tmp_path / "run"
    grid = ("--ctx", "512") if "--tasks" in options else RULER
    outcome = cli("validate", chat(template), *grid, *options, "--out", run)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not run.exists()


def test_a_broken_template_does_not_keep_a_model_from_completing(cli: Call, chat: MakeChat) -> None:
    model = chat("{% for m in messages %}")
    (cell,) = cli("validate", model, *RULER, "--format", "completion", "--json").json["cells"]
    assert cell["status"] == "ok"


def test_a_file_without_a_template_cannot_chat(cli: Call, nano: Path) -> None:
    outcome = cli("validate", nano, *RULER, "--format", "chat")
    assert outcome.code == 2
    assert "nano.gguf: the file has no chat template: use --format completion" in outcome.err


def test_a_text_task_does_not_look_at_the_template(cli: Call, chat: MakeChat) -> None:
    model = chat("{% for m in messages %}")
    outcome = cli("validate", model, "--ctx", "256", "--tasks", "kv-cache", "--json")
    assert [cell["status"] for cell in outcome.json["cells"]] == ["ok"]


def test_a_ruler_task_that_does_not_fit_is_told_apart(cli: Call, nano: Path) -> None:
    options = ("--tasks", "ruler", "--ruler-tasks", "niah_single_1,vt,cwe", "--threads", "1")
    outcome = cli("validate", nano, "--ctx", "512,1024", *options)
    assert "1 cell skipped: 512 tokens are too few for the shortest prompt" in outcome.out
    assert "error" not in outcome.out
