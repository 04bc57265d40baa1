"""Plans and their results, on small real files that `gguf` wrote and reads back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from fixtures.make import build
from ggufrope.container.filesystem import FileLayer
from ggufrope.container.reader import read_header
from ggufrope.container.recovery import undo
from ggufrope.container.store import execute, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import Edits, TypedValue, ValueType
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import GuardError, RequestError, StorageError
from ggufrope.patching.inspection import inspect, read_model
from ggufrope.patching.plan import apply, plan_patch
from ggufrope.patching.request import ScalingRequest

YARN = ScalingRequest(scaling="yarn", target_context=2048)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return build("llama", tmp_path / "llama.gguf", context=512)[0]


def keys(path: Path) -> dict[str, Any]:
    return {name: f.contents() for name, f in gguf.GGUFReader(path).fields.items()}


def weights(path: Path) -> dict[str, bytes]:
    return {t.name: t.data.tobytes() for t in gguf.GGUFReader(path).tensors}


def test_a_copy_differs_in_the_planned_keys_alone(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    plan = plan_patch(llama, YARN, output=out)
    assert not out.exists()
    receipt = apply(plan)
    before, after = keys(llama), keys(out)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    changed -= {"GGUF.kv_count"}
    assert changed == {edit.key for edit in receipt.edits}
    assert after["llama.rope.scaling.type"] == "yarn"
    assert after["llama.rope.scaling.factor"] == 4.0
    assert after["llama.rope.scaling.original_context_length"] == 512
    assert after["llama.context_length"] == 2048
    assert weights(out) == weights(llama)


def test_with_its_digest_every_byte_of_a_copy_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = FileLayer.copy

    def flawed(files: FileLayer, *where: Any) -> int:
        """Copy, and change a byte between two samples of the comparison."""
        copied = copy(files, *where)
        target, offset = where[-2:]
        if copied > 1 << 19:
            files.write(target, offset + 6000, b"!")
        return copied

    monkeypatch.setattr(FileLayer, "copy", flawed)
    llama = build("llama", tmp_path / "llama.gguf", width=256, hidden=512)[0]
    plan = plan_patch(llama, YARN, output=tmp_path / "out.gguf", strategy=Strategy.STREAM)
    with pytest.raises(StorageError, match=r"bytes at \d+ differ from the plan"):
        apply(plan, hash_weights=True)
    apply(plan)


def test_edits_show_old_and_new(llama: Path) -> None:
    edits = {edit.key: (edit.old, edit.new) for edit in plan_patch(llama, YARN).edits}
    assert edits["llama.context_length"] == (512, 2048)
    assert edits["llama.rope.scaling.type"] == (None, "yarn")


def test_the_plan_predicts_what_inspect_then_finds(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    plan = plan_patch(llama, YARN, output=out)
    apply(plan)
    found = inspect(out).effective
    assert found is not None
    for predicted, group in zip(plan.effective.groups, found.groups, strict=True):
        np.testing.assert_allclose(
            predicted.inverse_frequencies, group.inverse_frequencies, rtol=1e-6
        )
        assert predicted.magnitude == pytest.approx(group.magnitude, rel=1e-6)


def test_layers_that_rotate_as_before_are_named(llama: Path, tmp_path: Path) -> None:
    """Gemma 3's sliding-window layers are never scaled."""
    gemma = build("gemma3", tmp_path / "gemma.gguf", context=512)[0]
    linear = ScalingRequest(scaling="linear", factor=2)
    assert plan_patch(gemma, linear).unchanged == (0, 1, 2, 3, 4)
    assert plan_patch(llama, YARN).unchanged == ()
    same = plan_patch(llama, ScalingRequest(scaling="none", target_context=1024))
    assert same.unchanged == (0, 1)


def test_a_moved_attention_temperature_is_noted(tmp_path: Path) -> None:
    """Mistral 3's temperature counts from the original context."""
    keys: dict[str, Any] = {"attention.temperature_scale": 0.1}
    path = build("mistral3", tmp_path / "m.gguf", context=512, keys=keys)[0]
    kept = plan_patch(path, YARN)
    linear = plan_patch(path, ScalingRequest(scaling="linear", factor=2))
    moved = plan_patch(path, ScalingRequest(scaling="yarn", original_context=256, factor=4))
    for plan in (kept, linear):
        assert not any("temperature" in note for note in plan.notes)
    assert any("moves from 512 to 256 tokens" in note for note in moved.notes)


def test_in_place_and_back(llama: Path) -> None:
    before = llama.read_bytes()
    receipt = apply(plan_patch(llama, YARN))
    assert receipt.path == llama
    assert read_model(llama).metadata.scaling_type == "yarn"
    undo(llama)
    assert llama.read_bytes() == before


def test_a_second_patch_replaces_the_first(llama: Path) -> None:
    apply(plan_patch(llama, YARN))
    apply(plan_patch(llama, ScalingRequest(scaling="none")))
    metadata = read_model(llama).metadata
    assert (metadata.scaling_type, metadata.factor, metadata.context_length) == ("none", None, 512)


def test_a_patch_that_changes_nothing_is_refused(llama: Path) -> None:
    apply(plan_patch(llama, YARN))
    with pytest.raises(RequestError, match="nothing to change"):
        plan_patch(llama, YARN)


def test_dead_parameters_are_named_and_not_written(llama: Path) -> None:
    plan = plan_patch(llama, ScalingRequest(scaling="yarn", target_context=2048, beta_fast=8))
    assert [(item.parameter, item.value) for item in plan.ignored] == [("yarn_beta_fast", 8)]
    assert plan.flags == ("--yarn-beta-fast", "8")
    assert not any("beta" in edit.key for edit in plan.edits)


def test_baking_puts_them_into_factors(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    baked = ScalingRequest(scaling="yarn", target_context=2048, beta_fast=8, bake=True)
    plan = plan_patch(llama, baked, output=out)
    assert plan.ignored == ()
    apply(plan)
    assert "rope_freqs.weight" in weights(out)
    assert {name: data for name, data in weights(out).items() if name in weights(llama)} == weights(
        llama
    )


def test_an_architecture_without_factors_refuses_to_bake(tmp_path: Path) -> None:
    qwen2 = build("qwen2", tmp_path / "qwen2.gguf", context=512)[0]
    with pytest.raises(RequestError, match=r"no factor tensors for qwen2.*--yarn-beta-fast"):
        plan_patch(qwen2, ScalingRequest(scaling="yarn", target_context=2048, bake=True))


def test_a_new_base_is_written_beside_the_scheme(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    apply(plan_patch(llama, ScalingRequest(scaling="none", freq_base=50000.0), output=out))
    assert keys(out)["llama.rope.freq_base"] == 50000.0


def test_reserved_space_makes_the_next_edit_cheap(llama: Path) -> None:
    apply(plan_patch(llama, YARN, reserve=4096))
    plan = plan_patch(llama, ScalingRequest(scaling="yarn", target_context=4096, attn_factor=1.2))
    assert plan.strategy is Strategy.RESERVE
    assert plan.bytes_written < 4096 * 2


def test_an_existing_output_is_guarded(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"precious")
    with pytest.raises(GuardError, match="exists already"):
        plan_patch(llama, YARN, output=out)
    assert out.read_bytes() == b"precious"
    apply(plan_patch(llama, YARN, output=out, force={"exists"}))
    assert keys(out)["llama.context_length"] == 2048


@pytest.mark.parametrize("kind", [ValueType.UINT64, ValueType.INT32])
def test_a_key_that_is_written_again_has_its_right_type(
    llama: Path, tmp_path: Path, kind: ValueType
) -> None:
    wrong, out = tmp_path / "wrong.gguf", tmp_path / "out.gguf"
    edits = Edits(set={"llama.context_length": TypedValue(type=kind, value=512)})
    execute(plan_store(llama, plan_rewrite(read_header(llama), edits), output=wrong))
    assert [found.code for found in inspect(wrong).findings] == ["wrong-type"]
    plan = plan_patch(wrong, YARN, output=out)
    assert plan.findings == ()
    apply(plan)
    assert inspect(out).findings == ()
