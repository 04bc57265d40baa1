"""Split models: read as one, edited in as few files as possible, undone only as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ggufrope.container.recovery import recover, undo
from ggufrope.container.shards import distribute, later_paths, open_model
from ggufrope.container.store import execute, plan_store
from ggufrope.container.types import Edits, float_tensor
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import MalformedError, RequestError, StorageError
from tests.container.edits import u32
from tests.container.faults import FaultyFiles, Stop
from tests.container.writer import Model, Tensor

if TYPE_CHECKING:
    from pathlib import Path

    from ggufrope.container.shards import ModelFiles

UINT16, INT32 = 2, 5

KEYS = Edits(set={"llama.context_length": u32(8192)})
FACTORS = Edits(
    set={"llama.context_length": u32(8192)},
    put_tensors={"t21": float_tensor([3.0] * 8, "<")},
)
"""Changes the first file and the third."""


def split(folder: Path, count: int = 3) -> Path:
    """Split as gguf-split does; the first file has the metadata and its share of the tensors."""
    for number in range(count):
        metadata = [("split.no", UINT16, number), ("split.count", UINT16, count)]
        metadata.append(("split.tensors.count", INT32, 2 * count))
        if number == 0:
            metadata.insert(0, ("llama.context_length", 4, 2048))
        tensors = [Tensor(f"t{number}{n}", (8,), bytes([number, n] * 16)) for n in range(2)]
        path = folder / f"m-{number + 1:05}-of-{count:05}.gguf"
        path.write_bytes(Model(metadata=metadata, tensors=tensors).encoded())
    return folder / f"m-00001-of-{count:05}.gguf"


def edited(model: ModelFiles, edits: Edits) -> list[str]:
    """Execute the edits in place and return the names of the files they touched."""
    touched = []
    for shard, part in distribute(model, edits):
        execute(plan_store(shard.path, plan_rewrite(shard.header, part)))
        touched.append(shard.path.name[2:7])
    return touched


def names(model: ModelFiles) -> list[str]:
    return [tensor.name for tensor in model.tensors]


def test_one_file_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(Model(tensors=[Tensor("t", (1,), bytes(4))]).encoded())
    model = open_model(path)
    assert names(model) == ["t"]
    edits = Edits(set={"k": u32(1)})
    assert distribute(model, edits) == ((model.shards[0], edits),)


def test_three_files_are_one_model(tmp_path: Path) -> None:
    model = open_model(split(tmp_path))
    assert names(model) == ["t00", "t01", "t10", "t11", "t20", "t21"]
    assert model.header.get("llama.context_length") == 2048
    assert model.file_size == sum(path.stat().st_size for path in tmp_path.iterdir())
    shard = model.shard_of("t11")
    assert shard is not None
    assert shard.path.name == "m-00002-of-00003.gguf"
    assert model.shard_of("absent") is None


def test_keys_and_new_tensors_change_the_first_file_alone(tmp_path: Path) -> None:
    first = split(tmp_path)
    edits = Edits(
        set={"llama.context_length": u32(8192)},
        put_tensors={"rope_freqs.weight": float_tensor([1.0, 2.0], "<")},
    )
    assert edited(open_model(first), edits) == ["00001"]
    model = open_model(first)
    assert model.header.get("split.tensors.count") == 7
    assert names(model)[2] == "rope_freqs.weight"


def test_tensors_are_edited_where_they_are(tmp_path: Path) -> None:
    first = split(tmp_path)
    edits = Edits(
        remove_tensors=frozenset({"t20"}),
        rename_tensors={"t10": "renamed"},
        put_tensors={"t21": float_tensor([3.0] * 8, "<")},
    )
    assert edited(open_model(first), edits) == ["00003", "00002", "00001"]
    model = open_model(first)
    assert names(model) == ["t00", "t01", "renamed", "t11", "t21"]
    assert model.header.get("split.tensors.count") == 5


def test_nothing_to_edit_changes_no_file(tmp_path: Path) -> None:
    assert distribute(open_model(split(tmp_path)), Edits()) == ()


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        (Edits(remove_tensors=frozenset({"absent"})), "no tensor 'absent'"),
        (Edits(rename_tensors={"t00": "t21"}), "two tensors would be named 't21'"),
        (Edits(remove=frozenset({"split.count"})), "hold the files"),
    ],
)
def test_edits_that_would_break_the_model(tmp_path: Path, edits: Edits, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        distribute(open_model(split(tmp_path)), edits)


def test_a_later_file_is_not_the_model(tmp_path: Path) -> None:
    split(tmp_path)
    with pytest.raises(RequestError, match=r"name m-00001-of-00003\.gguf"):
        open_model(tmp_path / "m-00002-of-00003.gguf")


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    first = split(tmp_path)
    second, third = tmp_path / "m-00002-of-00003.gguf", tmp_path / "m-00003-of-00003.gguf"
    data = second.read_bytes()
    second.write_bytes(third.read_bytes())
    with pytest.raises(MalformedError, match="is not number 2 of the 3"):
        open_model(first)
    second.unlink()
    with pytest.raises(StorageError, match="No such file"):
        open_model(first)
    second.write_bytes(data.replace(b"t10", b"t99"))
    assert "t99" in names(open_model(first))
    first.write_bytes(first.read_bytes().replace(b"\x06\0\0\0", b"\x09\0\0\0", 1))
    with pytest.raises(MalformedError, match="counts 9 tensors, its files have 6"):
        open_model(first)
    with pytest.raises(MalformedError, match="must be named NAME-00001-of-00003"):
        open_model(first.rename(tmp_path / "renamed.gguf"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_an_edit_of_keys_is_undone_in_the_first_file(tmp_path: Path) -> None:
    first = split(tmp_path)
    before = contents(tmp_path)
    assert edited(open_model(first), KEYS) == ["00001"]
    assert recover(first) is None
    undo(first)
    assert contents(tmp_path) == before


def test_undo_refuses_a_model_whose_later_files_were_edited(tmp_path: Path) -> None:
    first = split(tmp_path)
    third = tmp_path / "m-00003-of-00003.gguf"
    before = contents(tmp_path)
    assert edited(open_model(first), FACTORS) == ["00003", "00001"]
    after = contents(tmp_path)
    with pytest.raises(RequestError, match=r"half changed.*") as caught:
        undo(first)
    assert str(first) in str(caught.value)
    assert "m-00003-of-00003.gguf" in str(caught.value)
    assert contents(tmp_path) == after
    undo(third)
    undo(first)
    assert contents(tmp_path) == before


def test_undo_refuses_a_model_of_which_only_a_later_file_was_edited(tmp_path: Path) -> None:
    """As after a crash between two files: the first has no record, and is not undone alone."""
    first = split(tmp_path)
    third = tmp_path / "m-00003-of-00003.gguf"
    (shard, part), _ = distribute(open_model(first), FACTORS)
    assert shard.path == third
    execute(plan_store(third, plan_rewrite(shard.header, part)))
    after = contents(tmp_path)
    with pytest.raises(RequestError, match="m-00003-of-00003"):
        undo(first)
    assert contents(tmp_path) == after


def test_an_interrupted_edit_of_a_later_file_is_reported(tmp_path: Path) -> None:
    first = split(tmp_path)
    third = tmp_path / "m-00003-of-00003.gguf"
    before = contents(tmp_path)
    (shard, part), _ = distribute(open_model(first), FACTORS)
    plan = plan_store(third, plan_rewrite(shard.header, part), force={"in-use"})
    journal = tmp_path / ".m-00003-of-00003.gguf.ggufrope-journal"
    stopped = 0
    for at in range(200):
        files = FaultyFiles("stop", at)
        try:
            execute(plan, files=files)
        except Stop:
            pass
        else:
            break
        if journal.exists():
            stopped += 1
            left = contents(tmp_path)
            for attempt in (recover, undo):
                with pytest.raises(
                    StorageError, match=r"unfinished edit.*inspect .*00003"
                ) as caught:
                    attempt(first)
                assert str(third) in str(caught.value)
            assert contents(tmp_path) == left
            assert recover(third)
            assert recover(first) is None
            break
        recover(third)
    assert stopped
    if contents(tmp_path) != before:
        undo(third)
    assert contents(tmp_path) == before


def test_records_of_later_files_are_found_behind_links(tmp_path: Path) -> None:
    """As in the Hugging Face cache: the names are links, and the records lie beside the files."""
    store = tmp_path / "store"
    store.mkdir()
    links = []
    for number, path in enumerate(sorted(split(tmp_path).parent.glob("*.gguf"))):
        target = store / f"blob{number}"
        path.rename(target)
        path.symlink_to(target)
        links.append(path)
    assert len(links) == 3
    (store / ".blob2.ggufrope-journal").write_bytes(b"in progress")
    with pytest.raises(StorageError, match="m-00003-of-00003"):
        recover(links[0])
    (store / ".blob2.ggufrope-journal").rename(store / ".blob2.ggufrope-undo")
    assert recover(links[0]) is None
    with pytest.raises(RequestError, match="m-00003-of-00003"):
        undo(links[0], force={"symlink"})


@pytest.mark.parametrize(
    ("name", "later"),
    [
        ("m-00001-of-00003.gguf", ["m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]),
        ("m-00002-of-00003.gguf", []),
        ("m-00001-of-00001.gguf", []),
        ("m-00001-of-00000.gguf", []),
        ("m.gguf", []),
    ],
)
def test_later_files_follow_from_the_name_of_the_first(
    tmp_path: Path, name: str, later: list[str]
) -> None:
    assert later_paths(tmp_path / name) == tuple(tmp_path / one for one in later)
