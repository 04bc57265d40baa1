"""Split models: read as one, edited in as few files as possible, undone only as a whole."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

from ggufrope.container.recovery import recover, undo
from ggufrope.container.shards import distribute, open_model, shard_paths, sibling_paths
from ggufrope.container.store import StorePlan, execute_together, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import Edits, float_tensor
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import MalformedError, RequestError, StorageError
from tests.container.edits import u32
from tests.container.faults import CapableFiles, FaultyFiles, Stop
from tests.container.writer import Model, Tensor

if TYPE_CHECKING:
    from ggufrope.container.shards import ModelFiles

UINT16, INT32 = 2, 5

KEYS = Edits(set={"llama.context_length": u32(8192)})
FACTORS = Edits(
    set={"llama.context_length": u32(8192)},
    put_tensors={"t21": float_tensor([3.0] * 8, "<")},
)
"""Changes the first file and the third."""
KEYS_AGAIN = Edits(set={"llama.context_length": u32(4096)})
LATER = Edits(put_tensors={"t10": float_tensor([4.0] * 8, "<")})
LATER_AGAIN = Edits(put_tensors={"t21": float_tensor([5.0] * 8, "<")})


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
    parts = distribute(model, edits)
    if parts:
        execute_together(
            [plan_store(shard.path, plan_rewrite(shard.header, part)) for shard, part in parts]
        )
    return [shard.path.name[2:7] for shard, _ in parts]


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


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_edit_of_two_files_is_undone_from_any_file(tmp_path: Path, number: int) -> None:
    first = split(tmp_path)
    before = contents(tmp_path)
    assert edited(open_model(first), FACTORS) == ["00003", "00001"]
    receipt = undo(tmp_path / f"m-0000{number}-of-00003.gguf")
    assert {path.name[2:7] for path in receipt.files} == {"00001", "00003"}
    assert (receipt.undone, receipt.left) == (1, 0)
    assert contents(tmp_path) == before


def test_edits_of_different_files_are_undone_newest_first(tmp_path: Path) -> None:
    first = split(tmp_path)
    states = [contents(tmp_path)]
    for edits in (FACTORS, LATER, KEYS_AGAIN, LATER_AGAIN):
        assert edited(open_model(first), edits)
        states.append(contents(tmp_path))
    for step in range(3, 0, -1):
        receipt = undo(first)
        assert receipt.left == step
        assert gguf_contents(tmp_path) == gguf(states[step])
    undo(first)
    assert contents(tmp_path) == states[0]


def test_a_renamed_split_model_keeps_its_records(tmp_path: Path) -> None:
    first = split(tmp_path)
    before = list(contents(tmp_path).values())
    assert edited(open_model(first), FACTORS) == ["00003", "00001"]
    renamed = []
    for path in sorted(tmp_path.glob("m-*.gguf")):
        renamed.append(path.rename(path.with_name(f"better{path.name[1:]}")))
    assert len(renamed) == 3
    undo(renamed[1])
    assert [path.read_bytes() for path in renamed] == before
    assert len(contents(tmp_path)) == 3


def test_a_lost_record_of_one_file_stops_the_undo(tmp_path: Path) -> None:
    first = split(tmp_path)
    edited(open_model(first), FACTORS)
    (tmp_path / ".m-00003-of-00003.gguf.ggufrope-undo-000001").unlink()
    after = contents(tmp_path)
    with pytest.raises(RequestError, match="half changed"):
        undo(first)
    assert contents(tmp_path) == after


def test_an_edit_of_two_files_that_cannot_be_undone_is_refused(tmp_path: Path) -> None:
    first = split(tmp_path)
    plans = [
        replace(plan_store(shard.path, plan_rewrite(shard.header, part)), undoable=False)
        for shard, part in distribute(open_model(first), FACTORS)
    ]
    before = contents(tmp_path)
    with pytest.raises(RequestError, match="write a copy"):
        execute_together(plans)
    assert contents(tmp_path) == before


def test_files_behind_links_are_one_model(tmp_path: Path) -> None:
    """As in the Hugging Face cache: the names are links, and the records lie beside the files."""
    store = tmp_path / "store"
    first = split(tmp_path)
    before = contents(tmp_path)
    store.mkdir()
    edited(open_model(first), FACTORS)
    for one in sorted(tmp_path.iterdir()):
        if one.is_file():
            one.rename(store / one.name.replace("m-0000", "blob"))
    links = []
    for target in sorted(store.glob("*.gguf")):
        link = tmp_path / target.name.replace("blob", "m-0000")
        link.symlink_to(target)
        links.append(link)
    assert len(links) == 3
    undo(links[1], force={"symlink"})
    assert [link.read_bytes() for link in links] == list(before.values())


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("m-00001-of-00003.gguf", [1, 2, 3]),
        ("m-00002-of-00003.gguf", [1, 2, 3]),
        ("m-00004-of-00003.gguf", []),
        ("m-00001-of-00000.gguf", []),
        ("m.gguf", []),
    ],
)
def test_the_files_of_a_model_follow_from_the_name_of_any(
    tmp_path: Path, name: str, found: list[int]
) -> None:
    split(tmp_path)
    wanted = [tmp_path / f"m-0000{number}-of-00003.gguf" for number in found]
    assert shard_paths(tmp_path / name) == tuple(wanted or [tmp_path / name])


@pytest.mark.parametrize("mode", ["fail", "short", "stop", "torn", "power"])
@pytest.mark.parametrize("strategies", [(None, None), ("stream", "stream"), (None, "stream")])
def test_whatever_goes_wrong_all_files_are_old_or_all_are_new(
    tmp_path: Path, mode: str, strategies: tuple[str | None, str | None]
) -> None:
    """At every operation of the edit; the next command on any file repairs what is left."""
    first = split(tmp_path)
    old = contents(tmp_path)
    execute_together(planned(first, strategies), files=CapableFiles())
    new = gguf_contents(tmp_path)
    undo(first, force={"in-use"}, files=CapableFiles())
    assert contents(tmp_path) == old
    finished = 0
    for at in range(300):
        plans = planned(first, strategies)
        files = FaultyFiles(mode, at)
        failed = False
        try:
            execute_together(plans, files=files)
        except StorageError:
            failed = True
        except Stop:
            pass
        files.close()
        if failed:
            assert gguf_contents(tmp_path) == old, "a failure leaves the old files"
        recover(tmp_path / f"m-0000{at % 3 + 1}-of-00003.gguf", files=CapableFiles())
        assert gguf_contents(tmp_path) in (old, new), at
        if gguf_contents(tmp_path) == new:
            undo(first, force={"in-use"}, files=CapableFiles())
        assert contents(tmp_path) == old, at
        if not files.struck:
            finished = at
            break
    assert finished >= 20


@pytest.mark.parametrize("mode", ["stop", "torn", "power"])
@pytest.mark.parametrize("strategies", [(None, None), ("stream", "stream")])
def test_whatever_goes_wrong_in_an_undo_or_a_recovery(
    tmp_path: Path, mode: str, strategies: tuple[str | None, str | None]
) -> None:
    first = split(tmp_path)
    old = contents(tmp_path)
    finished = 0
    for at in range(300):
        execute_together(planned(first, strategies), files=CapableFiles())
        new = gguf_contents(tmp_path)
        files = FaultyFiles(mode, at)
        with suppress(Stop):
            undo(first, force={"in-use"}, files=files)
        files.close()
        again = FaultyFiles(mode, at // 3)
        with suppress(Stop):
            recover(tmp_path / f"m-0000{at % 3 + 1}-of-00003.gguf", files=again)
        again.close()
        recover(tmp_path / f"m-0000{(at + 1) % 3 + 1}-of-00003.gguf", files=CapableFiles())
        assert gguf_contents(tmp_path) in (old, new), at
        if gguf_contents(tmp_path) == new:
            undo(first, force={"in-use"}, files=CapableFiles())
        assert contents(tmp_path) == old, at
        if not files.struck:
            finished = at
            break
    assert finished > 10


def test_a_copy_of_a_split_model_is_whole_or_absent(tmp_path: Path) -> None:
    first = split(tmp_path)
    before = contents(tmp_path)
    finished = 0
    for at in range(100):
        try:
            execute_together(copies(first), files=FaultyFiles("fail", at))
        except StorageError:
            assert contents(tmp_path) == before
        else:
            finished = at
            break
    assert finished > 15
    assert len(contents(tmp_path)) == 6


def test_a_copy_in_place_of_another_is_whole_before_the_first_file_goes(tmp_path: Path) -> None:
    first = split(tmp_path)
    for path in sorted(tmp_path.glob("m-*.gguf")):
        path.with_name(path.name.replace("m-", "o-")).write_bytes(path.read_bytes() + b"old")
    before = contents(tmp_path)
    finished = mixed = 0
    for at in range(100):
        try:
            execute_together(copies(first, "exists"), files=FaultyFiles("fail", at))
        except StorageError as error:
            if "the model is mixed" in str(error):
                mixed += 1
                for name in before:
                    (tmp_path / name).write_bytes(before[name])
            elif contents(tmp_path) != before:  # all were there: the last name was not synced
                assert not any(data.endswith(b"old") for data in contents(tmp_path).values())
            assert contents(tmp_path).keys() == before.keys()
        else:
            finished = at
            break
    assert finished > 15
    assert mixed <= 4  # where a rename itself fails


def test_a_source_that_changes_while_it_is_copied(tmp_path: Path) -> None:
    class Changing(CapableFiles):
        def copy(self, source: BinaryIO, *rest: Any) -> int:
            os.utime(source.name, ns=(0, 0))  # as whoever wrote to it
            return super().copy(source, *rest)

    first = split(tmp_path)
    with pytest.raises(StorageError, match="has changed since"):
        execute_together(copies(first), files=Changing())
    assert sorted(contents(tmp_path)) == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


def test_the_files_of_a_copy_need_room_together(tmp_path: Path) -> None:
    plans = copies(split(tmp_path))
    most = max(plan.bytes_needed for plan in plans)

    class Small(CapableFiles):
        def free_bytes(self, path: Path) -> int:
            return most

    with pytest.raises(StorageError, match=f"{most} bytes free, the edit needs"):
        execute_together(plans, files=Small())
    assert len(contents(tmp_path)) == 3


def copies(first: Path, *force: str) -> list[StorePlan]:
    """Plan a copy of a split model, as o-*.gguf."""
    return [
        plan_store(
            shard.path,
            plan_rewrite(shard.header, Edits()),
            output=first.with_name(shard.path.name.replace("m-", "o-")),
            force=force,
        )
        for shard in reversed(open_model(first).shards)
    ]


def planned(first: Path, strategies: tuple[str | None, str | None]) -> list[StorePlan]:
    """Plan an edit of the third file and of the first, each with a strategy."""
    parts = distribute(open_model(first), FACTORS)
    return [
        plan_store(
            shard.path,
            plan_rewrite(shard.header, part),
            strategy=None if wanted is None else Strategy(wanted),
            force={"in-use"},
            files=CapableFiles(),
        )
        for (shard, part), wanted in zip(parts, strategies, strict=True)
    ]


def gguf(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.endswith(".gguf")}


def gguf_contents(folder: Path) -> dict[str, bytes]:
    return gguf(contents(folder))


def test_new_files_of_a_split_model_are_named_after_their_first() -> None:
    first = Path("new-00001-of-00002.gguf")
    assert sibling_paths(first, 2) == (first, Path("new-00002-of-00002.gguf"))
    for name, count in (("new.gguf", 2), ("new-00002-of-00002.gguf", 2), (first.name, 3)):
        with pytest.raises(RequestError, match=f"the new ones NAME-00001-of-0000{count}"):
            sibling_paths(Path(name), count)
