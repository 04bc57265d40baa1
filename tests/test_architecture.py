"""Who may import whom, checked from the source (the table is docs/architecture.md's)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufrope.patching.command import FLAGS

COMMON = {"errors", "lm", "_bisect", "_files", "_format", "_plain"}
"""What every room may import; these import nothing of ours but each other."""

ALLOWED: dict[str, set[str]] = {
    **dict.fromkeys(COMMON, COMMON),
    "container": set(),
    "rope": {"container"},
    "patching": {"container", "rope"},
    "advice": {"container", "rope", "patching"},
    "runtime": {"container", "rope"},
    "server": {"container", "rope"},
    "evals": {"container", "rope"},
    "backends": {"container", "rope", "patching", "runtime", "server"},
    "proof": {"container", "rope", "patching", "runtime"},
    "search": {"container", "rope", "patching", "evals", "backends"},
    "runs": {"container", "rope", "patching", "server", "evals", "backends"},
    "__main__": set(),  # the one module that calls the command line
    "report": {"container", "rope", "patching", "evals", "backends", "search", "runs"},
}
ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "ggufrope"
LEAVES = {"ggufrope.rope.keys": 8, "ggufrope.evals.stats": 8, "ggufrope.runs.plan": 25}
"""Modules of ours that importing one may load, itself and the packages above it counted."""

OUR_FLAGS = (*FLAGS.values(), "--ctx", "--kv")


def modules() -> list[Path]:
    return sorted(LIBRARY.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in modules()}


def imported_modules(path: Path) -> Iterator[str]:
    """The modules that a module imports, also inside functions and for type checkers only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; write it out"
            assert node.module
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from whole & NAMES
            if not whole <= NAMES:
                yield node.module


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_imports_follow_the_rule(path: Path) -> None:
    home = room(name_of(path))
    for name in imported_modules(path):
        top = name.split(".")[0]
        assert top not in {"typer", "rich"}, f"{path} imports {name}"
        if top == "llama_cpp":
            assert home == "runtime", f"only runtime may import llama_cpp, not {path}"
        if home and top == "ggufrope":
            allowed = COMMON | {home} | ALLOWED[home]
            assert room(name) in allowed, f"{path} imports {name}"


def test_every_room_is_in_the_table() -> None:
    rooms = {room(name) for name in NAMES} - {""}
    assert rooms <= set(ALLOWED) | COMMON


def test_inner_packages_are_empty() -> None:
    faces = list(LIBRARY.rglob("*/__init__.py"))
    assert len(faces) > 5
    for path in faces:
        assert path.read_text() == "", f"{path}: the one public face is ggufrope itself"


def test_there_is_no_circle() -> None:
    """Not even of type hints: Kahn's algorithm has to take away every module."""
    graph = {
        name_of(path): {name for name in imported_modules(path) if name in NAMES}
        for path in modules()
        if name_of(path) != "ggufrope"
    }
    assert len(graph) > 50
    while free := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, f"these import each other in a circle: {sorted(graph)}"


@pytest.mark.parametrize("leaf", LEAVES)
def test_importing_a_leaf_costs_a_leaf(leaf: str) -> None:
    code = f"import sys, {leaf}; print(*[m for m in sys.modules if m.startswith('ggufrope')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    names = loaded.stdout.split()
    assert leaf in names
    assert len(names) <= LEAVES[leaf], f"{leaf} loads {', '.join(names)}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_the_library_neither_prints_nor_exits(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "exit", "quit", "input"}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("sys", "exit")


@pytest.mark.parametrize(
    "command",
    [
        "--version",
        "inspect MODEL --json",
        "patch MODEL -o OUT --scaling yarn --factor 2 --dry-run",
        "patch MODEL -o OUT --scaling yarn --factor 2 --bake --dry-run",
        "advise MODEL --target-ctx 1024",
        "export MODEL --to llama-server",
    ],
)
def test_commands_that_read_headers_import_no_numpy(
    command: str, nano: Path, tmp_path: Path
) -> None:
    """NumPy alone would be 40 % of the time that `inspect` takes."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('numpy' in sys.modules, file=sys.stderr))\n"
        "from ggufrope_cli.app import main\n"
        "main()"
    )
    paths = {"MODEL": str(nano), "OUT": str(tmp_path / "out.gguf")}
    words = [paths.get(word, word) for word in command.split()]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr.splitlines()[-1] == "False"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_the_library_does_not_speak_the_command_line(path: Path) -> None:
    """Its strings name fields; only `patching/command.py` has the flags of our own commands."""
    if path == LIBRARY / "patching" / "command.py":
        return
    flag = re.compile(r"(?<![\w-])(" + "|".join(OUR_FLAGS) + r")(?![\w-])")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert id(node) in docstrings or not flag.search(node.value), node.value
