"""The README and the help are complete: every command and public name is documented."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer.main
from ggufrope_cli.app import build

import ggufrope

COMMANDS = dict(sorted(typer.main.get_command(build()).commands.items()))  # type: ignore[attr-defined]
LIBRARY = Path(ggufrope.__file__).parent
MODULES = sorted(path for path in LIBRARY.rglob("*.py") if path.name != "__init__.py")


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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_modules_and_their_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_every_readme_path_exists(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", readme)
    assert len(targets) > 10
    assert [target for target in targets if not (root / target).exists()] == []
