"""Build the pages as a site, with a reference of every command and of the Python interface.

    python -m tools.docs [FOLDER]

Pages keep the places that they have in the repository, so that their links to each other and to
results work in both. What a page links to is copied along. Nothing is fetched, and a warning of
mkdocs, as of a link that leads nowhere, is an error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from ggufrope_cli.app import build
from ggufrope_cli.commands import COMMANDS

import ggufrope

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "build" / "docs-source"
"""Where mkdocs.yml looks for the pages."""
PAGES = (
    *("*.md", "docs/*.md", "docs/site.css", "fixtures/*.md"),
    *("benchmarks/README.md", "benchmarks/results/*.md"),
)
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


def main() -> None:
    site = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs"
    shutil.rmtree(SOURCE, ignore_errors=True)
    for path in files():
        target = SOURCE / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (SOURCE / "docs" / "commands.md").write_text("\n".join(commands()), encoding="utf-8")
    (SOURCE / "docs" / "api.md").write_text("\n".join(interface()), encoding="utf-8")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run([*words, "--config-file", str(ROOT / "mkdocs.yml")], check=False)
    sys.exit(done.returncode)


def files() -> Iterator[Path]:
    """Yield the pages, and the other files that they link to."""
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    linked = {
        (page.parent / target).resolve()
        for page in pages
        for target in _LINK.findall(page.read_text(encoding="utf-8"))
    }
    yield from pages
    yield from sorted(path for path in linked - set(pages) if path.is_file())


def commands() -> Iterator[str]:
    """Yield the lines of the reference of commands: each option with its unit and default."""
    app: Any = typer.main.get_command(build())
    yield "# Commands\n"
    yield "Every command has `--help`, which says the same. [Exit codes](gating-in-ci.md).\n"
    for name in COMMANDS:
        command = app.commands[name]
        yield f"## ggufrope {name}\n"
        yield f"{_cell(command.help)}\n"
        if command.epilog:
            yield f"`{command.epilog.removeprefix('Example: ')}`\n"
        yield "| | takes | default | |"
        yield "|---|---|---|---|"
        for parameter in command.params:
            yield f"| {' | '.join(_row(parameter))} |"
        yield ""


def _row(parameter: Any) -> tuple[str, str, str, str]:
    names = [*parameter.opts, *parameter.secondary_opts]
    words = ", ".join(f"`{name}`" for name in names if name.startswith("-"))
    takes = "" if getattr(parameter, "is_flag", False) else parameter.metavar or "N"
    default = parameter.default
    if default is None or default is False or callable(default):
        default = ""
    elif default is True:
        default = parameter.opts[0]
    return words or f"`{takes}`", _cell(takes), _cell(str(default)), _cell(parameter.help or "")


def _cell(text: str) -> str:
    """Help as it stands in a cell of a table or as a paragraph."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def interface() -> Iterator[str]:
    """Yield the lines of the reference of Python names: those of `ggufrope` itself."""
    yield "# Python reference\n"
    yield "What `import ggufrope` offers. [Python](python.md) shows it in use.\n"
    for name in ggufrope.__all__:
        yield f"::: {getattr(ggufrope, name).__module__}.{name}\n"


if __name__ == "__main__":
    main()
