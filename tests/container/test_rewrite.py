"""Edits written to a new file: what changes, what stays byte by byte, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import struct
from typing import TYPE_CHECKING, Any

import pytest

from ggufrope.container.filesystem import FileLayer
from ggufrope.container.reader import read_header, read_tensor
from ggufrope.container.store import execute, plan_store
from ggufrope.container.types import (
    PADDING_KEY,
    ArrayValue,
    Edits,
    Header,
    TensorData,
    TypedValue,
    ValueType,
    float_tensor,
)
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import GuardError, RequestError, StorageError
from tests.container.writer import Model, Tensor, small_model

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO


def edit(path: Path, edits: Edits, *, reserve: int | None = None) -> tuple[Path, Header]:
    output = path.with_suffix(".new")
    rewrite = plan_rewrite(read_header(path), edits, reserve=reserve)
    receipt = execute(plan_store(path, rewrite, output=output), verify_all=True)
    assert read_header(output) == receipt.header
    assert {p.name for p in path.parent.iterdir()} == {path.name, output.name}
    return output, receipt.header


def written(tmp_path: Path, model: Model) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(model.encoded())
    return path


def u32(value: int) -> TypedValue:
    return TypedValue(type=ValueType.UINT32, value=value)


def tensor_bytes(path: Path) -> dict[str, bytes]:
    header = read_header(path)
    return {t.name: read_tensor(path, header, t.name) for t in header.tensors}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("trailing", [b"", b"after the end"])
@pytest.mark.parametrize("final_padding", [True, False])
def test_no_edits_is_the_same_file(
    tmp_path: Path, order: str, version: int, trailing: bytes, final_padding: bool
) -> None:
    model = small_model(
        order=order, version=version, trailing=trailing, final_padding=final_padding
    )
    path = written(tmp_path, model)
    output, _ = edit(path, Edits())
    assert output.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_edited_file_is_what_a_writer_would_write(tmp_path: Path, order: str) -> None:
    model = small_model(order=order, trailing=b"tail")
    path = written(tmp_path, model)
    edits = Edits(
        set={
            "general.name": TypedValue(type=ValueType.STRING, value="another, longer name"),
            "llama.context_length": u32(16384),
            "llama.rope.scaling.type": TypedValue(type=ValueType.STRING, value="yarn"),
            "new.flags": TypedValue(
                type=ValueType.ARRAY, value=(True, False), item_type=ValueType.BOOL
            ),
        },
        remove=frozenset({"general.quantized"}),
    )
    output, _ = edit(path, edits)
    model.metadata[1] = ("general.name", 8, "another, longer name")
    model.metadata[2] = ("llama.context_length", 4, 16384)
    model.metadata[-1:] = [("llama.rope.scaling.type", 8, "yarn"), ("new.flags", 9, (7, [1, 0]))]
    assert output.read_bytes() == model.encoded()


@pytest.mark.parametrize("order", ["<", ">"])
def test_tensor_edits_are_what_a_writer_would_write(tmp_path: Path, order: Any) -> None:
    model = small_model(order=order, trailing=b"tail")
    path = written(tmp_path, model)
    long = float_tensor([1.0, 2.5, 4.0], order)
    edits = Edits(
        put_tensors={"rope_factors_short.weight": float_tensor([1.0], order), "long": long},
        remove_tensors=frozenset({"token_embd.weight"}),
        rename_tensors={"rope_freqs.weight": "long"},
    )
    output, _ = edit(path, edits)
    del model.tensors[0]
    freqs = model.tensors[0]
    freqs.name, freqs.shape, freqs.data = "long", (3,), struct.pack(order + "3f", 1.0, 2.5, 4.0)
    added = type(freqs)("rope_factors_short.weight", (1,), struct.pack(order + "f", 1.0))
    model.tensors.append(added)
    assert output.read_bytes() == model.encoded()


def test_alignment_changes_with_the_key(tmp_path: Path) -> None:
    model = small_model()
    path = written(tmp_path, model)
    output, header = edit(path, Edits(set={"general.alignment": u32(256)}))
    assert header.alignment == 256
    assert header.data_offset % 256 == 0
    assert [t.offset for t in header.tensors] == [0, 256, 512, 768]
    assert tensor_bytes(output) == tensor_bytes(path)


def test_reserve_is_left_and_kept(tmp_path: Path) -> None:
    path = written(tmp_path, small_model())
    output, header = edit(path, Edits(), reserve=4096)
    padding = header.get(PADDING_KEY)
    assert isinstance(padding, ArrayValue)
    assert (padding.item_type, padding.count) == (ValueType.UINT8, 4096)
    path.unlink()
    _, after = edit(output.rename(path), Edits(set={"new": u32(1)}))
    assert after.data_offset == header.data_offset
    assert [kv.key for kv in after.key_values][-2:] == ["new", PADDING_KEY]


def test_a_set_key_loses_its_duplicates(tmp_path: Path) -> None:
    model = small_model()
    model.metadata += [("dup", 4, 1), ("last", 4, 9), ("dup", 4, 2)]
    path = written(tmp_path, model)
    _, header = edit(path, Edits(set={"dup": u32(5)}))
    assert [(kv.key, kv.value) for kv in header.key_values[-2:]] == [("dup", 5), ("last", 9)]


def test_setting_what_is_there_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, small_model())
    rewrite = plan_rewrite(read_header(path), Edits(set={"llama.context_length": u32(2048)}))
    assert not any(isinstance(piece, bytes) for piece in rewrite.key_values)


U8 = ValueType.UINT8


@pytest.mark.parametrize(
    "edits",
    [
        Edits(set={"k": TypedValue(type=U8, value=256)}),
        Edits(set={"k": TypedValue(type=U8, value=-1)}),
        Edits(set={"k": TypedValue(type=U8, value=1.5)}),
        Edits(set={"k": TypedValue(type=U8, value=True)}),
        Edits(set={"k": TypedValue(type=U8, value=(1,))}),
        Edits(set={"k": TypedValue(type=ValueType.FLOAT32, value=1e39)}),
        Edits(set={"k": TypedValue(type=ValueType.STRING, value=3)}),
        Edits(set={"k": TypedValue(type=ValueType.STRING, value="\ud800")}),
        Edits(set={"k": TypedValue(type=ValueType.ARRAY, value=(1,))}),
        Edits(set={"k": TypedValue(type=ValueType.ARRAY, value=1, item_type=U8)}),
        Edits(set={"": u32(1)}),
        Edits(set={"k" * 70000: u32(1)}),
        Edits(set={PADDING_KEY: u32(1)}),
        Edits(set={"general.alignment": u32(33)}),
        Edits(set={"general.name": u32(1)}, remove=frozenset({"general.name"})),
        Edits(remove=frozenset({"absent"})),
        Edits(remove_tensors=frozenset({"absent"})),
        Edits(rename_tensors={"absent": "a"}),
        Edits(rename_tensors={"rope_freqs.weight": "output_norm.weight"}),
        Edits(rename_tensors={"rope_freqs.weight": "n" * 64}),
        Edits(rename_tensors={"rope_freqs.weight": ""}),
        Edits(put_tensors={"t": TensorData(shape=(3,), data=bytes(8))}),
        Edits(put_tensors={"t": TensorData(shape=(3,), data=bytes(8), type=2)}),
        Edits(put_tensors={"t": TensorData(shape=(3,), data=bytes(8), type=999)}),
        Edits(put_tensors={"t": TensorData(shape=(1, 1, 1, 1, 1), data=bytes(4))}),
    ],
)
def test_impossible_edits(tmp_path: Path, edits: Edits) -> None:
    header = read_header(written(tmp_path, small_model()))
    with pytest.raises(RequestError) as caught:
        plan_rewrite(header, edits)
    assert "\n" not in str(caught.value)


def test_factors_beyond_f32() -> None:
    with pytest.raises(RequestError, match="F32"):
        float_tensor([1.0, 1e300], "<")


def test_output_must_not_be_the_input(tmp_path: Path) -> None:
    path = written(tmp_path, small_model())
    link = tmp_path / "link.gguf"
    link.hardlink_to(path)
    rewrite = plan_rewrite(read_header(path), Edits())
    for output in (path, tmp_path / "." / "m.gguf", link):
        with pytest.raises(RequestError, match="is the input itself"):
            plan_store(path, rewrite, output=output)


def test_impossible_outputs(tmp_path: Path) -> None:
    path = written(tmp_path, small_model())
    rewrite = plan_rewrite(read_header(path), Edits())
    other = tmp_path / "other.gguf"
    other.write_text("precious")
    with pytest.raises(GuardError, match="exists already") as caught:
        plan_store(path, rewrite, output=other)
    assert caught.value.guard == "exists"
    execute(plan_store(path, rewrite, output=other, force={"exists"}))
    assert other.read_bytes() == path.read_bytes()
    with pytest.raises(StorageError, match="is a directory"):
        plan_store(path, rewrite, output=tmp_path)
    with pytest.raises(StorageError, match="is not a directory"):
        plan_store(path, rewrite, output=tmp_path / "absent" / "x.gguf")


class FullDisk(FileLayer):
    """A disk with room for the header but not for the data."""

    def copy(self, *_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


class Interrupted(FileLayer):
    def sync(self, file: BinaryIO) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("files", "error"), [(FullDisk(), StorageError), (Interrupted(), KeyboardInterrupt)]
)
def test_failure_leaves_nothing_behind(
    tmp_path: Path, files: FileLayer, error: type[BaseException]
) -> None:
    path = written(tmp_path, small_model())
    digest = hashlib.sha256(path.read_bytes()).digest()
    plan = plan_store(path, plan_rewrite(read_header(path), Edits()), output=tmp_path / "o.gguf")
    with pytest.raises(error):
        execute(plan, files=files)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert hashlib.sha256(path.read_bytes()).digest() == digest


def test_an_empty_tensor_behind_the_end_of_an_unpadded_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = Model(tensors=[Tensor("empty", (0,), b"")], final_padding=True)
    path.write_bytes(model.encoded())
    before = read_header(path)
    assert before.file_size < before.data_offset
    rewrite = plan_rewrite(before, Edits(rename_tensors={"empty": "renamed"}))
    receipt = execute(plan_store(path, rewrite))
    assert [tensor.name for tensor in receipt.header.tensors] == ["renamed"]
    assert read_tensor(path, receipt.header, "renamed") == b""
