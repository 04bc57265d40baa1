"""Who may import whom, checked from the source (the table is docs/architecture.md's)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ALLOWED: dict[str, set[str]] = {
    "container": set(),
    "rope": {"container"},
    "advice": {"container", "rope"},
    "patching": {"container", "rope"},
    "runtime": {"container", "rope"},
    "evals": {"container", "rope", "runtime"},
    "search": {"container", "rope", "runtime", "patching", "evals"},
    "runs": {"container", "rope", "runtime", "patching", "evals"},
    "report": {"container", "rope", "runtime", "patching", "evals", "search", "runs"},
}
ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "ggufrope"


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of what the module imports, also inside functions."""
    package = ("ggufrope", *path.relative_to(LIBRARY).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*prefix, *([node.module] if node.module else [])))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def modules() -> list[Path]:
    return sorted(LIBRARY.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_imports_follow_the_rule(path: Path) -> None:
    relative = path.relative_to(LIBRARY)
    home = relative.parts[0] if len(relative.parts) > 1 else None
    for name in imported_modules(path):
        parts = name.split(".")
        assert parts[0] not in {"typer", "rich"}, f"{relative} imports {name}"
        if parts[0] == "llama_cpp":
            assert home == "runtime", f"only runtime may import llama_cpp, not {relative}"
        if home and parts[0] == "ggufrope" and len(parts) > 1 and parts[1] in ALLOWED:
            assert parts[1] == home or parts[1] in ALLOWED[home], f"{relative} imports {name}"


def test_every_package_is_in_the_table() -> None:
    packages = {p.parent.name for p in LIBRARY.glob("*/__init__.py")}
    assert packages <= set(ALLOWED)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_the_library_neither_prints_nor_exits(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "exit", "quit", "input"}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("sys", "exit")
