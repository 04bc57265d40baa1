"""llama.cpp loads edited files: by every strategy, after crashes and repairs, split models too."""

from __future__ import annotations

import ctypes
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ggufrope.container.reader import read_array, read_header, read_tensor
from ggufrope.container.recovery import recover, undo
from ggufrope.container.shards import distribute, open_model
from ggufrope.container.store import execute, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import ArrayValue, Edits, float_tensor
from ggufrope.container.writer import plan_rewrite
from tests.container.edits import text, u32
from tests.container.faults import FaultyFiles, Stop
from tests.container.writer import Model, Tensor

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

FACTORS = float_tensor([1.0 + n / 8 for n in range(32)], "<")
YARN = {"llama.rope.scaling.type": text("yarn"), "llama.context_length": u32(16384)}
LONGROPE = {"llama.rope.scaling.type": text("longrope")}


@pytest.fixture(scope="module")
def model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy to edit; every test restores it, or at least leaves it loadable."""
    return Path(shutil.copy(smollm2, tmp_path_factory.mktemp("model") / "m.gguf"))


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def silent(_level: int, _text: bytes, _data: object) -> None:
    pass


@pytest.fixture(autouse=True)
def quiet() -> None:
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))


def loaded(path: Path) -> dict[str, str]:
    """Load the whole model and return its metadata; fail where llama.cpp refuses the file."""
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0
    handle = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
    assert handle, "llama.cpp refuses the file"
    found = {}
    buffer = ctypes.create_string_buffer(1 << 12)
    for at in range(llama_cpp.llama_model_meta_count(handle)):
        llama_cpp.llama_model_meta_key_by_index(handle, at, buffer, len(buffer))
        key = buffer.value.decode()
        llama_cpp.llama_model_meta_val_str_by_index(handle, at, buffer, len(buffer))
        found[key] = buffer.value.decode("utf-8", "replace")
    llama_cpp.llama_model_free(handle)
    return found


def edit(path: Path, edits: Edits, strategy: Strategy | None = None) -> Strategy:
    rewrite = plan_rewrite(read_header(path), edits)
    return execute(plan_store(path, rewrite, strategy=strategy)).strategy


def test_a_chain_of_edits_in_place(model: Path) -> None:
    before = model.read_bytes()
    edit(model, Edits(set=YARN))
    found = loaded(model)
    assert (found["llama.rope.scaling.type"], found["llama.context_length"]) == ("yarn", "16384")
    edit(model, Edits(put_tensors={"rope_freqs.weight": FACTORS}))
    loaded(model)
    rename = {"rope_freqs.weight": "rope_factors_long.weight"}
    short = {"rope_factors_short.weight": FACTORS}
    edit(model, Edits(set=LONGROPE, rename_tensors=rename, put_tensors=short))
    assert loaded(model)["llama.rope.scaling.type"] == "longrope"
    gone = frozenset({"rope_factors_long.weight", "rope_factors_short.weight"})
    edit(model, Edits(set=YARN, remove_tensors=gone))
    loaded(model)
    undo(model)
    assert loaded(model)["llama.rope.scaling.type"] == "longrope"
    model.write_bytes(before)


def test_a_copy_and_its_undo(model: Path) -> None:
    before = model.read_bytes()
    assert edit(model, Edits(set=YARN), Strategy.STREAM) is Strategy.STREAM
    assert loaded(model)["llama.rope.scaling.type"] == "yarn"
    undo(model)
    assert model.read_bytes() == before


@pytest.mark.parametrize("mode", ["torn", "power"])
def test_crashes_and_their_repair(model: Path, mode: str) -> None:
    """The model loads after each repair; what the crash left might not."""
    before = read_header(model)
    for at in (6, 8, 10, 12, 14):
        rewrite = plan_rewrite(read_header(model), Edits(set=YARN))
        files = FaultyFiles(mode, at, seed=at)
        made = plan_store(model, rewrite)
        with suppress(Stop):
            execute(made, files=files)
        files.close()
        recover(model)
        header = read_header(model)
        assert header.get("llama.context_length") in (before.get("llama.context_length"), 16384)
        loaded(model)
        if header != before:
            undo(model)
        assert read_header(model) == before


def test_a_split_model(smollm2: Path, tmp_path: Path) -> None:
    """Two files made from one by hand: an edit changes the first, and they still load together."""
    header = read_header(smollm2)
    tensors = [
        Tensor(t.name, t.shape, read_tensor(smollm2, header, t.name), t.type)
        for t in header.tensors
    ]
    metadata: list[tuple[str, int, Any]] = []
    for kv in header.key_values:
        value = kv.value
        if isinstance(value, ArrayValue):
            metadata.append((kv.key, 9, (int(value.item_type), read_array(smollm2, header, kv))))
        else:
            metadata.append((kv.key, int(kv.type), value))
    for number, (part, keys) in enumerate(((tensors[:100], metadata), (tensors[100:], []))):
        split = [("split.no", 2, number), ("split.count", 2, 2)]
        split.append(("split.tensors.count", 5, len(tensors)))
        path = tmp_path / f"m-{number + 1:05}-of-00002.gguf"
        path.write_bytes(Model(metadata=[*keys, *split], tensors=part).encoded())
    first, second = sorted(tmp_path.iterdir())
    before = second.stat()
    edits = Edits(set=YARN, put_tensors={"rope_freqs.weight": FACTORS})
    for shard, shard_edits in distribute(open_model(first), edits):
        rewrite = plan_rewrite(shard.header, shard_edits)
        execute(plan_store(shard.path, rewrite))
    assert second.stat().st_mtime_ns == before.st_mtime_ns
    assert loaded(first)["llama.rope.scaling.type"] == "yarn"
    assert open_model(first).header.get("split.tensors.count") == len(tensors) + 1
