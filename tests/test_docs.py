"""The README and the help are complete: nothing ships that a reader cannot find."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
import typer.main
from ggufrope_cli.app import build

COMMANDS = dict(sorted(typer.main.get_command(build()).commands.items()))  # type: ignore[attr-defined]
PACKAGES = (
    "container",
    "rope",
    "advice",
    "patching",
    "runtime",
    "evals",
    "search",
    "runs",
    "report",
)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_in_the_readme(name: str, root: Path) -> None:
    assert f"ggufrope {name}" in (root / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_help_an_example_and_json(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert f"ggufrope {name}" in (command.epilog or "")
    assert any("--json" in parameter.opts for parameter in command.params)
    for parameter in command.params:
        assert getattr(parameter, "help", None) or parameter.name == "help", parameter.name


def test_readme_names_only_commands_that_exist(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\$? ?ggufrope ([a-z]+)", readme, flags=re.MULTILINE))
    assert named
    assert named <= set(COMMANDS)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist_and_are_documented(package: str) -> None:
    module = importlib.import_module(f"ggufrope.{package}")
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__) > 0
    for name in module.__all__:
        member = getattr(module, name)
        if inspect.isclass(member) or inspect.isfunction(member):
            assert member.__doc__, f"{package}.{name} has no docstring"


def test_every_readme_path_exists(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", readme):
        assert (root / target).exists(), target
