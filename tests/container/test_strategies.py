"""Every strategy: what it writes, what it leaves alone, and that undo restores every bit."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from gguf import GGUFReader

from ggufrope.container.filesystem import LOCAL
from ggufrope.container.reader import read_header, read_tensor
from ggufrope.container.recovery import recover, undo
from ggufrope.container.store import execute, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import Edits
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import RequestError, StorageError
from tests.container.edits import CASES, SCALING, Case, blocky_model, plan, prepare, u32
from tests.container.faults import CapableFiles, CloningFiles

if TYPE_CHECKING:
    from pathlib import Path

by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def tensors(path: Path) -> dict[str, bytes]:
    header = read_header(path)
    return {tensor.name: read_tensor(path, header, tensor.name) for tensor in header.tensors}


@by_name
def test_takes_its_strategy_and_can_be_undone(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    old = prepare(path, case)
    os.utime(path, ns=(10**18, 10**18))
    path.chmod(0o640)
    before = tensors(path)
    made = plan(path, case, CapableFiles())
    assert made.strategy is case.strategy
    receipt = execute(made, verify_all=True, files=CapableFiles())
    assert receipt.header == read_header(path)
    assert names(tmp_path) == {"m.gguf", ".m.gguf.ggufrope-undo-000001"}
    assert path.stat().st_mode & 0o777 == 0o640
    for name, value in case.edits.set.items():
        assert receipt.header.get(name) == value.value
    expected = {
        name: data for name, data in before.items() if name not in case.edits.remove_tensors
    }
    expected |= {name: tensor.data for name, tensor in case.edits.put_tensors.items()}
    assert tensors(path) == expected
    undo(path, files=CapableFiles())
    assert path.read_bytes() == old
    assert path.stat().st_mtime_ns == 10**18
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == {"m.gguf"}


@by_name
def test_gguf_reads_the_result(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    prepare(path, case)
    execute(plan(path, case, CapableFiles()), files=CapableFiles())
    reader = GGUFReader(path)
    header = read_header(path)
    ours = {t.name: read_tensor(path, header, t.name) for t in header.tensors}
    theirs = {t.name: t.data.tobytes() for t in reader.tensors}
    assert ours == theirs
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == 900
    assert [f for f in reader.fields if not f.startswith("GGUF.")] == [
        kv.key for kv in header.key_values
    ]


@by_name
def test_all_strategies_give_the_same_content(case: Case, tmp_path: Path) -> None:
    """By every strategy, keys, values and tensors are those of a plain copy."""
    path, copy = tmp_path / "m.gguf", tmp_path / "copy.gguf"
    prepare(path, case)
    rewrite = plan_rewrite(read_header(path), case.edits)
    execute(plan_store(path, rewrite, output=copy, strategy=Strategy.STREAM))
    execute(plan(path, case, CapableFiles()), files=CapableFiles())

    def stated(header_of: Path) -> list[tuple[str, object]]:
        header = read_header(header_of)
        return [
            (kv.key, kv.value)
            for kv in header.key_values
            if kv.key not in ("ggufrope.padding", "tokenizer.ggml.tokens")
        ]

    assert stated(path) == stated(copy)
    assert tensors(path) == tensors(copy)


def test_bytes_written_are_what_changed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    written = {}
    for case in CASES:
        prepare(path, case)
        written[case.name] = plan(path, case, CapableFiles()).bytes_written
    assert written["same size"] == len("llama.context_length") + 8 + 4 + 4
    assert written["same size tensor"] == 32
    assert written["tensor appended"] < 1024
    assert written["first tensor goes"] < 1024
    assert written["grow"] < 2 * 4096
    assert written["grow and append"] < 2 * 4096
    assert written["clone"] < 8 * 4096
    assert written["stream"] > 28000


def test_growing_leaves_room_for_the_next_edits(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    prepare(path, CASES[0])
    files = CapableFiles()
    taken = []
    for edits in (SCALING, {"a": u32(1)}, {"b": u32(2)}, {"a": u32(3)}):
        rewrite = plan_rewrite(read_header(path), Edits(set=edits))
        taken.append(execute(plan_store(path, rewrite, files=files), files=files).strategy)
    assert taken == [Strategy.GROW, Strategy.RESERVE, Strategy.RESERVE, Strategy.OVERWRITE]
    undo(path)
    assert read_header(path).get("a") == 1


def test_big_endian_grows_too(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    case = Case("grow", Edits(set=SCALING), Strategy.GROW)
    old = prepare(path, case, blocky_model(">"))
    before = tensors(path)
    header = execute(plan(path, case, CapableFiles()), files=CapableFiles()).header
    assert header.byte_order == ">"
    assert header.get("llama.rope.scaling.factor") == 4
    assert tensors(path) == before
    undo(path, files=CapableFiles())
    assert path.read_bytes() == old


def test_nothing_to_change_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    prepare(path, CASES[0])
    made = plan_store(path, plan_rewrite(read_header(path), Edits()))
    assert made.bytes_written == 0
    execute(made)
    assert names(tmp_path) == {"m.gguf"}
    with pytest.raises(RequestError, match="no edit"):
        undo(path)


def test_undo_refuses_what_changed_since(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    case = CASES[0]
    prepare(path, case)
    execute(plan(path, case, LOCAL))
    data = bytearray(path.read_bytes())
    data[data.index(b"token 5")] ^= 1
    path.write_bytes(data)
    with pytest.raises(RequestError, match="changed after the edit"):
        undo(path)
    assert path.read_bytes() == data


def test_a_plan_does_not_outlive_its_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    case = CASES[0]
    prepare(path, case)
    made = plan(path, case, LOCAL)
    other = path.with_suffix(".other")
    other.write_bytes(path.read_bytes())
    other.replace(path)
    with pytest.raises(StorageError, match="has changed since"):
        execute(made)
    rewrite = plan_rewrite(read_header(path), case.edits)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(StorageError, match="has changed since"):
        plan_store(path, rewrite)


def test_a_damaged_journal_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    case = CASES[0]
    prepare(path, case)
    execute(plan(path, case, LOCAL))
    record = tmp_path / ".m.gguf.ggufrope-undo-000001"
    data = record.read_bytes()
    edited = path.read_bytes()
    for broken in (b"", data[:-1], data[:50] + b"x" + data[51:]):
        (tmp_path / ".m.gguf.ggufrope-journal").write_bytes(broken)
        with pytest.raises(StorageError, match="damaged"):
            recover(path)
        assert path.read_bytes() == edited


def test_a_journal_of_another_file_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    prepare(path, CASES[0])
    execute(plan(path, CASES[0], LOCAL))
    (tmp_path / ".m.gguf.ggufrope-undo-000001").rename(tmp_path / ".m.gguf.ggufrope-journal")
    other_bytes = bytes(reversed(path.read_bytes()))
    path.write_bytes(other_bytes)
    with pytest.raises(StorageError, match="another file now"):
        recover(path)
    assert path.read_bytes() == other_bytes


def test_lack_of_room_is_reported_before_anything_is_written(tmp_path: Path) -> None:
    class Full(CapableFiles):
        def free_bytes(self, path: Path) -> int:
            return 20

    path = tmp_path / "m.gguf"
    assert len(CASES) > 6
    for case in CASES[6:]:
        prepare(path, case)
        with pytest.raises(StorageError, match="20 bytes free"):
            plan(path, case, Full())
    prepare(path, CASES[1])
    with pytest.raises(StorageError, match="20 bytes free, the edit needs 32"):
        plan(path, CASES[1], Full())


def test_an_impossible_strategy_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    case = Case("", Edits(set=SCALING), Strategy.OVERWRITE, requested=True)
    prepare(path, case)
    with pytest.raises(RequestError, match=r"'overwrite' cannot store .* the header needs"):
        plan(path, case, CapableFiles())
    rewrite = plan_rewrite(read_header(path), Edits())
    with pytest.raises(RequestError, match=r"'grow' cannot .*: as a new file, clone or stream can"):
        plan_store(
            path,
            rewrite,
            output=tmp_path / "o.gguf",
            strategy=Strategy.GROW,
            files=CapableFiles(),
        )
    prepare(path, CASES[0])
    same_size = Case("", CASES[0].edits, Strategy.RESERVE, requested=True)
    with pytest.raises(RequestError, match=r"'reserve' cannot .*: in place, overwrite or .* can"):
        plan(path, same_size, CapableFiles())


@pytest.mark.parametrize("name", ["reserved", "tensor appended", "last tensor goes"])
def test_whole_files_are_cloned_where_the_data_can_stay(name: str, tmp_path: Path) -> None:
    path, output = tmp_path / "m.gguf", tmp_path / "o.gguf"
    case = next(case for case in CASES if case.name == name)
    old = prepare(path, case)
    files = CloningFiles()
    rewrite = plan_rewrite(read_header(path), case.edits)
    made = plan_store(path, rewrite, output=output, files=files)
    assert made.strategy is Strategy.CLONE
    assert made.bytes_written < 4096
    header = execute(made, verify_all=True, files=files).header
    assert read_header(output) == header
    assert path.read_bytes() == old
    made = plan_store(path, rewrite, strategy=Strategy.CLONE, force={"in-use"}, files=files)
    execute(made, files=files)
    assert path.read_bytes() == output.read_bytes()
    undo(path, force={"in-use"}, files=files)
    assert path.read_bytes() == old


def test_whole_files_are_not_cloned_where_the_data_must_move(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    case = next(case for case in CASES if case.name == "grow")
    prepare(path, case)
    made = plan(path, case, CloningFiles())
    assert made.strategy is Strategy.STREAM
    assert "would have to move" in made.rejected[-1].reason


def test_refusals_fall_through_to_the_copy(tmp_path: Path) -> None:
    class Fickle(CapableFiles):
        """Files that promise every operation and then refuse it."""

        def insert_range(self, *_: object) -> None:
            raise OSError(95, "Operation not supported")

        def clone_range(self, *_: object) -> None:
            raise OSError(22, "Invalid argument")

    path = tmp_path / "m.gguf"
    case = next(case for case in CASES if case.name == "grow")
    prepare(path, case)
    files = Fickle()
    receipt = execute(plan(path, case, files), files=files)
    assert receipt.strategy is Strategy.STREAM
    assert [(each.strategy, each.reason) for each in receipt.rejected][-2:] == [
        (Strategy.GROW, "Operation not supported"),
        (Strategy.CLONE, "Invalid argument"),
    ]
    assert receipt.header.get("llama.rope.scaling.factor") == 4
    assert names(tmp_path) == {"m.gguf", ".m.gguf.ggufrope-undo-000001"}
