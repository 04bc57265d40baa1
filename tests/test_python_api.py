"""The public names, and the script of docs/python.md on a real model."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
from importlib import metadata
from pathlib import Path

import pytest

import ggufrope


def page(root: Path) -> str:
    return (root / "docs" / "python.md").read_text(encoding="utf-8")


def script(root: Path) -> str:
    block: str
    (block,) = re.findall(r"^```python\n(.*?)^```$", page(root), flags=re.MULTILINE | re.DOTALL)
    return block


@pytest.mark.parametrize("name", ggufrope.__all__)
def test_public_name_exists_and_is_on_the_page(name: str, root: Path) -> None:
    assert getattr(ggufrope, name).__doc__
    assert re.search(rf"`{name}\b", page(root))


def test_what_type_checkers_see_is_what_there_is(root: Path) -> None:
    """The imports under TYPE_CHECKING, the table of homes and `__all__` name the same."""
    tree = ast.parse((root / "ggufrope" / "__init__.py").read_text(encoding="utf-8"))
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == sorted(ggufrope.__all__)
    homes = ggufrope._HOMES.items()
    assert seen == {name: f"ggufrope.{home}" for home, names in homes for name in names}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'ggufrope' has no attribute 'stretch'"):
        ggufrope.stretch  # noqa: B018


def test_the_script_is_about_twenty_lines(root: Path) -> None:
    assert len([line for line in script(root).splitlines() if line.strip()]) <= 24


@pytest.mark.llama
def test_the_script_does_what_the_page_says(
    root: Path,
    nano: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(nano, tmp_path / "model.gguf")
    (tmp_path / "script.py").write_text(script(root), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("script.py")
    said = capsys.readouterr().out
    assert "llama.rope.scaling.factor: None -> 4.0\n" in said
    assert "global layers: slowest pair" in said
    assert "512 tokens, q8_0 cache: recall" in said
    assert "as it stands" in said.splitlines()[-1]
    assert ggufrope.verify(Path("model.gguf"), Path("model-1k.gguf")).differing == ()


def test_source_tree_that_is_not_installed_has_a_version_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert ggufrope.__version__ == "not installed"
