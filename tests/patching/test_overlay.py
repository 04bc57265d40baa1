"""Overlays: keys and factor tensors over a model file, with gguf's reader as the oracle."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from ggufrope.container.types import TypedValue, ValueType
from ggufrope.errors import RequestError, StorageError
from ggufrope.patching.inspection import read_model
from ggufrope.patching.overlay import FactorFile, factor_file, overlay
from ggufrope.rope.encode import Expression
from tests.search.standin import N_ROT, write_model

if TYPE_CHECKING:
    from pathlib import Path

ONES = (1.0,) * (N_ROT // 2)
RISING = tuple(float(j + 1) for j in range(N_ROT // 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "working"
    made.mkdir()
    return made


def tensors_of(path: Path) -> dict[str, list[float]]:
    """Read and closed, so that the next read sees the file as it is then."""
    reader = gguf.GGUFReader(str(path))
    return {tensor.name: np.array(tensor.data).ravel().tolist() for tensor in reader.tensors}


def holder_of(file: FactorFile) -> Path:
    """The one file that factors are written to."""
    (holder,) = {path for path, _ in file.places}
    return holder


def test_the_model_is_linked_and_one_small_shard_holds_the_factors(
    tmp_path: Path, folder: Path
) -> None:
    path = write_model(tmp_path / "model.gguf")
    before = path.read_bytes()
    file = factor_file(read_model(path), folder)
    assert file.path.name.endswith("-00001-of-00002.gguf")
    assert file.path.is_symlink()
    assert file.path.samefile(path)
    assert tensors_of(holder_of(file)) == {"rope_freqs.weight": list(ONES)}
    assert gguf.GGUFReader(str(holder_of(file))).fields["split.no"].contents() == 1
    assert holder_of(file).stat().st_size < 512
    assert file.kv_overrides == {
        "split.no": 0,
        "split.count": 2,
        "split.tensors.count": 2,
        "llama.rope.scaling.type": "none",
    }
    file.write(RISING)
    assert tensors_of(holder_of(file)) == {"rope_freqs.weight": list(RISING)}
    assert path.read_bytes() == before
    file.remove()
    assert list(folder.iterdir()) == []
    assert path.exists()


def test_long_and_short_factors_are_written_alike(tmp_path: Path, folder: Path) -> None:
    file = factor_file(read_model(write_model(tmp_path / "m.gguf", "phi3")), folder)
    file.write(RISING)
    assert tensors_of(holder_of(file)) == {
        "rope_factors_long.weight": list(RISING),
        "rope_factors_short.weight": list(RISING),
    }
    assert file.kv_overrides["phi3.rope.scaling.type"] == "longrope"
    assert file.kv_overrides["split.tensors.count"] == 3


def test_a_file_with_factors_of_its_own_is_copied_and_changed_there(
    tmp_path: Path, folder: Path
) -> None:
    path = write_model(tmp_path / "model.gguf", rope_freqs=RISING)
    before = path.read_bytes()
    file = factor_file(read_model(path), folder)
    assert file.path == folder / "model.gguf"
    assert file.kv_overrides == {}
    file.write(ONES)
    assert tensors_of(file.path)["rope_freqs.weight"] == list(ONES)
    assert tensors_of(file.path)["token_embd.weight"] == tensors_of(path)["token_embd.weight"]
    assert path.read_bytes() == before


def test_where_no_link_can_be_made_a_copy_gets_the_factors(tmp_path: Path, folder: Path) -> None:
    path = write_model(tmp_path / "model.gguf")
    file = factor_file(read_model(path), folder, linking=False)
    assert [each.is_symlink() for each in folder.iterdir()] == [False]
    file.write(RISING)
    assert tensors_of(file.path) == tensors_of(path) | {"rope_freqs.weight": list(RISING)}
    assert read_model(file.path).metadata.scaling_type == "none"


def test_a_split_model_gets_one_shard_more(tmp_path: Path, folder: Path) -> None:
    writer = gguf.GGUFWriter(
        str(tmp_path / "m.gguf"), "llama", split_max_tensors=1, small_first_shard=False
    )
    writer.add_context_length(256)
    writer.add_embedding_length(N_ROT)
    writer.add_head_count(1)
    writer.add_block_count(1)
    for name in ("token_embd.weight", "output_norm.weight"):
        writer.add_tensor(name, np.zeros((4, N_ROT), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = factor_file(read_model(tmp_path / "m-00001-of-00002.gguf"), folder)
    assert sorted(each.name for each in folder.iterdir()) == [
        f"overlay-0000{number}-of-00003.gguf" for number in (1, 2, 3)
    ]
    assert (folder / "overlay-00002-of-00003.gguf").samefile(tmp_path / "m-00002-of-00002.gguf")
    assert file.kv_overrides["split.tensors.count"] == 3
    with pytest.raises(StorageError, match="needs symbolic links"):
        factor_file(read_model(tmp_path / "m-00001-of-00002.gguf"), folder, linking=False)


YARN = {
    "llama.context_length": TypedValue(type=ValueType.UINT32, value=1024),
    "llama.rope.scaling.type": TypedValue(type=ValueType.STRING, value="yarn"),
    "llama.rope.scaling.factor": TypedValue(type=ValueType.FLOAT32, value=4),
    "llama.rope.scaling.attn_factor": None,
}


def test_keys_are_overrides_of_their_own_type_and_need_no_file(
    tmp_path: Path, folder: Path
) -> None:
    path = write_model(tmp_path / "model.gguf")
    found = overlay(read_model(path), Expression(keys=YARN, tensors={}), folder)
    assert found is not None
    assert found.path == path
    assert found.kv_overrides == {
        "llama.context_length": 1024,
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
    }
    assert isinstance(found.kv_overrides["llama.rope.scaling.factor"], float)
    assert list(folder.iterdir()) == []


def test_tensors_are_one_more_shard_with_the_keys_beside(tmp_path: Path, folder: Path) -> None:
    path = write_model(tmp_path / "model.gguf")
    factors = {"rope_factors_long.weight": RISING, "rope_factors_short.weight": ONES}
    found = overlay(read_model(path), Expression(keys=YARN, tensors=factors), folder)
    assert found is not None
    assert found.path.samefile(path)
    assert tensors_of(found.files[-1]) == {name: list(each) for name, each in factors.items()}
    assert found.kv_overrides["split.tensors.count"] == 3
    assert found.kv_overrides["llama.context_length"] == 1024
    found.remove()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("keys", "tensors"),
    [
        ({"llama.context_length": None}, {}),
        ({}, {"rope_freqs.weight": RISING}),
        ({}, {"rope_freqs.weight": None}),
        ({"a" * 128: TypedValue(type=ValueType.BOOL, value=True)}, {}),
        ({"a": TypedValue(type=ValueType.STRING, value="a" * 128)}, {}),
        ({"a": TypedValue(type=ValueType.ARRAY, item_type=ValueType.BOOL, value=(True,))}, {}),
    ],
    ids=["key goes", "tensor changes", "tensor goes", "long key", "long text", "array"],
)
def test_what_only_a_copy_can_say(
    tmp_path: Path, folder: Path, keys: dict[str, Any], tensors: dict[str, Any]
) -> None:
    model = read_model(write_model(tmp_path / "model.gguf", rope_freqs=ONES))
    assert overlay(model, Expression(keys=keys, tensors=tensors), folder) is None
    assert list(folder.iterdir()) == []


def test_a_wrong_number_of_factors_is_refused(tmp_path: Path, folder: Path) -> None:
    file = factor_file(read_model(write_model(tmp_path / "m.gguf")), folder)
    with pytest.raises(RequestError, match="3 factors for 8 rotary pairs"):
        file.write((1.0, 2.0, 3.0))


def test_a_folder_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    model = read_model(write_model(tmp_path / "m.gguf"))
    with pytest.raises(StorageError, match="absent"):
        factor_file(model, tmp_path / "absent")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full here")  # noqa: PTH110
def test_no_room_is_one_clear_error(tmp_path: Path, folder: Path) -> None:
    model = read_model(write_model(tmp_path / "m.gguf"))
    (folder / "overlay-00002-of-00002.gguf").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        factor_file(model, folder)
