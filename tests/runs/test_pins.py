"""No run mixes two contents of one file, and none is taken for another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ggufrope.container import pins
from ggufrope.container.pins import FileChangedError, PinChecks, pin, pin_model, renewed
from ggufrope.evals.task import Haystack, RulerSettings
from ggufrope.runs.jobs import Selection
from ggufrope.runs.store import RunStore
from tests.runs.test_driver import results, states

if TYPE_CHECKING:
    from types import ModuleType

    from ggufrope.evals.results import CellResult

Start = Callable[..., Path]

FIRST_ONLY = Selection(only=("kv=f16",))


def exchange(path: Path, content: str) -> None:
    """Put another file of the same size and times in the place of one."""
    status = path.stat()
    other = path.with_name("other")
    other.write_text(content)
    assert other.stat().st_size == status.st_size
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


def overwrite(path: Path, content: str) -> None:
    """Write other content of the same length into a file and set its time back."""
    status = path.stat()
    with path.open("r+") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


@pytest.mark.parametrize("change", [exchange, overwrite])
def test_an_interrupted_run_is_not_resumed_on_another_model(
    start: Start, scripted: ModuleType, change: Callable[[Path, str], None]
) -> None:
    folder = start("forgets 256", kv=("f16", "q8_0"))
    scripted.work(folder, selection=FIRST_ONLY)
    model = folder.parent / "model-0.gguf"
    before = results(folder)
    change(model, "forgets 100")
    for _ in range(2):
        with pytest.raises(FileChangedError, match=r"model-0\.gguf has changed since .* began"):
            scripted.work(folder)
    assert results(folder) == before
    change(model, "forgets 256")
    scripted.work(folder)
    assert states(folder) == ["done", "done"]


@pytest.mark.parametrize("work", ["work", "work_in_processes"])
def test_a_model_exchanged_while_it_is_measured_ends_the_run(
    start: Start, scripted: ModuleType, work: str
) -> None:
    folder = start("sleeps 0.1", kv=("f16", "q8_0"))
    model = folder.parent / "model-0.gguf"
    seen: list[CellResult] = []

    def on_cell(result: CellResult) -> None:
        seen.append(result)
        if len(seen) == 2:
            exchange(model, "sleeps 0.2")

    with pytest.raises(FileChangedError, match=r"model-0\.gguf has changed"):
        getattr(scripted, work)(folder, on_cell=on_cell)
    # Results that were on their way are of the model as it was.
    assert len(results(folder)) in (2, 3)
    assert states(folder) == ["pending", "pending"]
    exchange(model, "sleeps 0.1")
    getattr(scripted, work)(folder)
    assert [result.status for result in results(folder)] == ["ok"] * 12


def test_a_file_that_was_only_touched_is_the_same_file(start: Start, scripted: ModuleType) -> None:
    folder = start("", kv=("f16", "q8_0"))
    scripted.work(folder, selection=FIRST_ONLY)
    model = folder.parent / "model-0.gguf"
    shutil.copyfile(model, folder.parent / "copy")
    (folder.parent / "copy").rename(model)
    scripted.work(folder)
    assert states(folder) == ["done", "done"]
    with RunStore(folder) as store:
        assert len(store.models()[0].sha256 or "") == 64


NAMED: list[tuple[str, Callable[[str], dict[str, Any]]]] = [
    ("text.txt", lambda name: {"text": name, "tasks": ("perplexity",)}),
    ("hay.txt", lambda name: {"haystack": Haystack(kind="text", file=name)}),
    ("prompts.json", lambda name: {"ruler": RulerSettings(templates=name)}),
    ("squad.json", lambda name: {"ruler": RulerSettings(squad=name)}),
]


@pytest.mark.parametrize(("name", "settings"), NAMED, ids=[name for name, _ in NAMED])
def test_a_file_that_the_plan_names_is_the_same_throughout(
    start: Start,
    scripted: ModuleType,
    tmp_path: Path,
    name: str,
    settings: Callable[[str], dict[str, Any]],
) -> None:
    named = tmp_path / name
    named.write_text("One two three. " * 400)
    folder = start("", kv=("f16", "q8_0"), **settings(str(named)))
    scripted.work(folder, selection=FIRST_ONLY)
    before = results(folder)
    named.write_text("One two threw. " * 400)
    with pytest.raises(FileChangedError, match=f"{name} has changed since this run began"):
        scripted.work(folder)
    assert results(folder) == before


def test_every_file_of_a_split_model_is_pinned(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2))
    first.write_text("a")
    second.write_text("b")
    found = pin_model(str(first))
    assert [Path(each.path) for each in found] == [first, second]
    second.write_text("c")
    with pytest.raises(FileChangedError, match="m-00002-of-00002"):
        PinChecks().check(found)


def test_a_check_reads_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    found = pin(path)
    assert renewed(found) is found
    path.write_text("content")
    checks = PinChecks()
    checks.check([found])
    monkeypatch.setattr(pins, "sha256_of", lambda path: pytest.fail("read again"))
    checks.check([found])


def test_a_file_that_could_not_be_read_stays_unknown(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (found,) = pin_model(str(path))
    assert (found.sha256, found.state) == ("", ())
    path.write_text("here after all")
    with pytest.raises(FileChangedError, match="with none"):
        renewed(found)
