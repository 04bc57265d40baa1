"""What differs on Windows and macOS, as far as it shows anywhere (docs/systems.md lists it)."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import pytest

from ggufrope._files import is_component, sha256_of, write_whole
from ggufrope.container import filesystem
from ggufrope.container.filesystem import LOCAL
from ggufrope.errors import RequestError
from ggufrope.patching.command import name_beside
from ggufrope.report.card import base_name

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path for room in ("ggufrope", "cli") for path in (ROOT / room).rglob("*.py"))
POSIX = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "readline"}


def calls(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_is_read_and_written_in_a_named_encoding(path: Path) -> None:
    """Windows has another one by default."""
    for call in calls(path):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if name in ("read_text", "write_text"):
            assert call.args[name == "write_text" :] or any(
                keyword.arg == "encoding" for keyword in call.keywords
            ), f"{path}:{call.lineno}"


def test_no_module_needs_what_only_posix_has() -> None:
    """Each is imported with the modules and the names away that Windows lacks."""
    code = (
        "import os, sys\n"
        f"for name in {sorted(POSIX)}: sys.modules[name] = None\n"
        "for name in ('O_NOFOLLOW', 'O_NONBLOCK', 'O_TMPFILE', 'O_CLOEXEC', 'statvfs', 'fchown',\n"
        "             'geteuid', 'getuid', 'listxattr', 'sched_getaffinity', 'sysconf', 'mkfifo',\n"
        "             'copy_file_range', 'pwrite', 'pread', 'fork'):\n"
        "    if hasattr(os, name): delattr(os, name)\n"
        "from importlib import import_module\n"
        "for name in sys.argv[1:]: import_module(name)\n"
        "print(len(sys.argv) - 1)"
    )
    optional = ("runs.ray",)
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if path.parts[-2] != "cli" and "cli" not in path.relative_to(ROOT).parts
    ]
    names = [name for name in names if not name.endswith((*optional, "__main__"))]
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == f"{len(names)}\n", done.stderr


def test_a_file_is_replaced_whole_and_its_lines_end_as_they_were(tmp_path: Path) -> None:
    """Windows would write another line end, and refuse to rename what is open."""
    path = tmp_path / "ü.txt"
    for text in ("one\n", "one\r\ntwo\n", "—\n"):
        write_whole(path, text)
        assert path.read_bytes() == text.encode()
        assert [each.name for each in tmp_path.iterdir()] == ["ü.txt"]
    assert len(sha256_of(path)) == 64


def test_a_link_stays_and_a_model_is_not_replaced(tmp_path: Path) -> None:
    path, link, model = tmp_path / "a.txt", tmp_path / "link", tmp_path / "m.gguf"
    path.write_text("old")
    link.symlink_to(path)
    write_whole(link, "new")
    assert (path.read_text(), link.is_symlink()) == ("new", True)
    model.write_bytes(b"GGUF and more")
    link.unlink()
    link.symlink_to(model)
    for name in (model, link):
        with pytest.raises(RequestError, match="is a model"):
            write_whole(name, "new")
    assert model.read_bytes() == b"GGUF and more"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other pipes")
def test_what_is_no_regular_file_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for name in (pipe, link):
        write_whole(name, "text")
        assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert pipe.is_fifo()
    assert link.is_symlink()
    code = "from ggufrope._files import write_whole; from pathlib import Path\n"
    code += "print('first', flush=True); write_whole(Path('/dev/stdout'), 'second')"
    out = tmp_path / "out"
    with out.open("wb") as stdout:
        subprocess.run([sys.executable, "-c", code], stdout=stdout, check=True)
    assert out.read_text() == "first\nsecond"


@pytest.mark.parametrize("missing", [(), ("exclusively",), ("exclusively", "link")])
def test_a_new_name_never_replaces_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    """On file systems with renameat2 or its like, with hard links alone, and with neither."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if "exclusively" in missing:
        monkeypatch.setattr(filesystem, "_rename_exclusively", refuse)
    if "link" in missing:
        monkeypatch.setattr("os.link", refuse)
    source, taken, free = (tmp_path / name for name in ("source", "taken", "free"))
    source.write_bytes(b"new")
    taken.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        LOCAL.place(source, taken)
    assert (source.read_bytes(), taken.read_bytes()) == (b"new", b"old")
    LOCAL.place(source, free)
    assert (free.read_bytes(), source.exists()) == (b"new", False)


def test_paths_of_windows() -> None:
    assert base_name(str(PureWindowsPath("C:/models/m.gguf"))) == "m.gguf"
    assert base_name("hf:owner/repo/m.gguf") == "hf:owner/repo/m.gguf"
    assert not is_component("a\\b")
    assert name_beside("m.gguf", "-x") == "m-x.gguf"
