"""Count the files and lines of each room, as docs/architecture.md shows them.

    python -m tools.house                    print the table of this checkout
    python -m tools.house COMMIT             print it beside that of a commit
    python -m tools.house COMMIT PAGE.md     write it into a page, between its two markers

A room is a folder of `ggufrope/`, or one of the files beside them; the command line is a room too.
Only Python files are counted, and of those only the ones that are not empty.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "container",
    "rope",
    "patching",
    "advice",
    "runtime",
    "evals",
    "runs",
    "search",
    "report",
    "files beside the rooms",
    "cli",
)
BESIDE = "files beside the rooms"
BEGIN, END = "<!-- rooms: python -m tools.house -->", "<!-- end of rooms -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The Python files of a room and their lines."""

    files: int = 0
    lines: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(files=self.files + other.files, lines=self.lines + other.lines)


def room_of(path: str) -> str | None:
    """Return the room of a path within the checkout, None for what is in no room."""
    top, *inner = Path(path).parts
    if Path(path).suffix != ".py" or top not in ("ggufrope", "cli"):
        return None
    if top == "cli":
        return top
    return inner[0] if len(inner) > 1 else BESIDE


def sizes(files: Iterable[tuple[str, str]]) -> dict[str, Size]:
    """Add up (path, text) pairs by room."""
    total: dict[str, Size] = {}
    for path, text in files:
        room = room_of(path)
        if room is not None and text:
            size = Size(files=1, lines=len(text.splitlines()))
            total[room] = total.get(room, Size()) + size
    return total


def here(root: Path = ROOT) -> dict[str, Size]:
    """Return the sizes of the rooms of a checkout."""
    paths = [path for top in ("ggufrope", "cli") for path in sorted((root / top).rglob("*.py"))]
    return sizes(
        (path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")) for path in paths
    )


def at(commit: str, root: Path = ROOT) -> dict[str, Size]:
    """Return the sizes of the rooms at a commit of the repository."""
    names = _git(root, "ls-tree", "-r", "--name-only", commit, "ggufrope", "cli").splitlines()
    wanted = [name for name in names if room_of(name)]
    return sizes((name, _git(root, "show", f"{commit}:{name}")) for name in wanted)


def table(now: Mapping[str, Size], before: Mapping[str, Size] | None = None) -> str:
    """Return the sizes as a Markdown table, with those of `before` where given."""
    columns = [now] if before is None else [before, now]
    rooms = [*ROOMS, *sorted({room for column in columns for room in column} - {*ROOMS})]
    words = ["files", "lines"]
    if before is not None:
        words = ["files before", "lines before", "files now", "lines now"]
    rows = ["| room | " + " | ".join(words) + " |", "|---|" + "---:|" * len(words)]
    for room in rooms:
        rows.append(_row(room if room == BESIDE else f"`{room}`", [c.get(room) for c in columns]))
    rows.append(_row("together", [sum(c.values(), Size()) for c in columns]))
    return "\n".join(rows)


def write_into(page: str, text: str) -> str:
    """Return a page with `text` between its markers. Raises ValueError where they are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN} and {END}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def _row(name: str, columns: Iterable[Size | None]) -> str:
    cells = [
        cell
        for size in columns
        for cell in (("", "") if size is None else (f"{size.files:,}", f"{size.lines:,}"))
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout


def main(arguments: list[str]) -> None:
    if len(arguments) > 2:
        sys.exit("usage: python -m tools.house [COMMIT [PAGE.md]]")
    text = table(here(), at(arguments[0]) if arguments else None)
    if len(arguments) < 2:
        print(text)
        return
    page = Path(arguments[1])
    page.write_text(write_into(page.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
