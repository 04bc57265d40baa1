"""The pages under docs/ are correct: every command, option, plan and link."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml
from ggufrope_cli.app import build, main

from ggufrope.runs.plan import parse_plan

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
COMMANDS = typer.main.get_command(build()).commands  # type: ignore[attr-defined]


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page in one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def calls() -> Iterator[tuple[str, str]]:
    """Yield (page, command line) of every call of ggufrope in a fenced block."""
    for page in PAGES:
        for block in (*blocks(page, ""), *blocks(page, "yaml"), *blocks(page, "sh")):
            for line in block.splitlines():
                found = re.match(r"\s*(?:\$ |- run: |run: )?(ggufrope .*)", line)
                if found:
                    yield page.name, re.sub(r"\$\{\{.*?\}\}", "1", found[1])


def test_there_are_calls_to_check() -> None:
    assert len(tuple(calls())) > 10


@pytest.mark.parametrize(("page", "line"), tuple(calls()))
def test_command_and_options_exist(page: str, line: str) -> None:
    words = shlex.split(line.partition(" | ")[0])[1:]
    command = COMMANDS[words[0]]
    options = {o for p in command.params for o in (*p.opts, *p.secondary_opts) if o[:1] == "-"}
    said = [word.partition("=")[0] for word in words[1:] if word.startswith("-")]
    assert set(said) <= options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_option_in_running_text_exists(page: Path) -> None:
    options = {o for command in COMMANDS.values() for p in command.params for o in p.opts}
    said = re.findall(r"`(--[a-z-]+)(?: [^`]*)?`", page.read_text(encoding="utf-8"))
    assert set(said) <= options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_plans_are_plans_and_workflows_are_yaml(page: Path) -> None:
    for block in blocks(page, "toml"):
        assert parse_plan(block, where=page.name).models
    for block in blocks(page, "yaml"):
        assert {"name", "jobs"} <= set(yaml.safe_load(block))


def test_there_are_plans_and_a_workflow_to_check() -> None:
    assert sum(len(blocks(page, "toml")) for page in PAGES) >= 3
    assert sum(len(blocks(page, "yaml")) for page in PAGES) >= 1


def test_every_link_leads_to_a_file() -> None:
    links = [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) >= 8
    assert [link for link in links if not (link[0].parent / link[1]).exists()] == []


@pytest.mark.parametrize(
    ("page", "jobs"), [("a-nights-sweep.md", "13 jobs"), ("gating-in-ci.md", "5 jobs")]
)
def test_the_plan_of_a_page_expands(
    page: str,
    jobs: str,
    nano: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(nano, tmp_path / "models" / "nano.gguf")
    (tmp_path / "plan.toml").write_text(blocks(ROOT / "docs" / page, "toml")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        main(["run", "plan.toml", "--dry-run"])
    assert not leaving.value.code
    assert jobs in capsys.readouterr().out


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    said = re.findall(
        r"^\| (\d) \|", (ROOT / "docs/gating-in-ci.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [int(code) for code in said] == list(range(6))
