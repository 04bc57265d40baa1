"""Cache types: their sizes, and which pairs run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import pytest

from fixtures.make import build
from ggufrope import RunPlan, read_model, run
from ggufrope.advice.memory import kv_bytes
from ggufrope.container.ggml import CACHE_TYPES
from ggufrope.errors import UnsupportedCacheError
from ggufrope.rope.architectures import architecture as rope_table
from ggufrope.rope.cache import cache_rules
from ggufrope.runtime.context import Context
from ggufrope.runtime.doctor import report
from ggufrope.runtime.library import Log
from ggufrope.runtime.memory import cache_refusal, cache_support
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings
from ggufrope.runtime.sizing import allocated

if TYPE_CHECKING:
    from pathlib import Path


QUANTIZED = (("q8_0", "q8_0"), ("q8_0", "q4_0"), ("q4_0", "q4_0"), ("f16", "q8_0"))


@pytest.mark.parametrize("name", CACHE_TYPES)
def test_types_are_those_of_ggml(name: str) -> None:
    kind = CACHE_TYPES[name]
    number = gguf.GGMLQuantizationType[name.upper()]
    assert kind.number == number
    assert (kind.block_size, kind.block_bytes) == gguf.GGML_QUANT_SIZES[number]


@pytest.mark.llama
def test_pairs_that_divide_the_head_run_and_others_are_refused(tmp_path: Path) -> None:
    (path,) = build("llama", tmp_path / "tiny.gguf", head_size=48)
    with Model.open(path) as model:
        for flash in (None, True, False):
            found = cache_support(model, "q8_0", "f16", flash_attention=flash)
            assert found.refusal is not None
            assert "do not divide the head size 48" in found.refusal
        assert cache_support(model, "bf16", "f32").refusal is None
        with pytest.raises(UnsupportedCacheError, match="head size 48"):
            Context(model, ContextSettings(n_ctx=256, type_v="q4_0"))


@pytest.mark.llama
@pytest.mark.parametrize(
    ("architecture", "sizes", "refused"),
    [
        ("llama", {}, 0),
        ("stablelm", {"width": 160, "head_size": 80, "kv_heads": 2, "rotary": 20}, 4),
        ("llama", {"head_size": 100, "kv_heads": 8, "heads": 8}, 4),
        ("gemma3", {"keys": {"attention.key_length_swa": 32}}, 0),
        ("deepseek2", {}, 2),
    ],
)
def test_the_rules_are_those_of_llama_cpp(
    tmp_path: Path, architecture: str, sizes: dict[str, Any], refused: int
) -> None:
    (path,) = build(architecture, tmp_path / "tiny.gguf", **sizes)
    metadata = read_model(path).metadata
    rules = cache_rules(metadata, rope_table(metadata.architecture))
    found = []
    with Model.open(path) as model:
        for k, v in (("f16", "f16"), *QUANTIZED):
            settings = ContextSettings(n_ctx=256, type_k=k, type_v=v)
            theirs = model.size_context(settings).refusal
            ours = rules.refusal(k, v)
            assert (ours is None) == (theirs is None), (k, v, ours, theirs)
            assert ours == cache_refusal(model, k, v)
            found.append(ours)
    assert len([why for why in found if why is not None]) == refused


@pytest.mark.llama
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("llama", "f16"), ("llama", "q8_0"), ("deepseek2", "f16"), ("deepseek2", "q4_0")],
)
def test_the_cache_of_advice_is_the_one_llama_cpp_allocates(
    tmp_path: Path, architecture: str, kind: str
) -> None:
    (path,) = build(architecture, tmp_path / "tiny.gguf", context=1 << 16)
    metadata = read_model(path).metadata
    with Model.open(path) as model:
        settings = ContextSettings(n_ctx=1 << 16, type_k=kind, type_v=kind)
        cache = model.size_context(settings).cache
    assert cache is not None
    assert cache.cells == 1 << 16
    advised = kv_bytes(metadata, context_tokens=1 << 16, k_type=kind, v_type=kind)
    assert advised == pytest.approx(cache.size_bytes, rel=1e-3)


@pytest.mark.llama
def test_latent_attention_needs_equal_types(tmp_path: Path) -> None:
    (path,) = build("deepseek2", tmp_path / "tiny.gguf")
    with Model.open(path) as model:
        Context(model, ContextSettings(n_ctx=256, type_k="q8_0", type_v="q8_0")).close()
        with pytest.raises(UnsupportedCacheError, match="deepseek2 needs the same type for both"):
            Context(model, ContextSettings(n_ctx=256, type_k="q8_0", type_v="q4_0"))
    plan = RunPlan(
        models=(str(path),), contexts=(256,), depths=1, kv=("f16", "q8_0/q4_0"), control=False
    )
    cells = run(plan, tmp_path / "run").cells
    assert {(cell.cell.kv, cell.status) for cell in cells if cell.status != "skipped"} == {
        ("f16", "ok"),
        ("q8_0/q4_0", "unsupported"),
    }


@pytest.mark.llama
def test_a_context_that_is_only_sized_agrees_with_one_that_is_made(tmp_path: Path) -> None:
    (path,) = build("qwen2", tmp_path / "tiny.gguf")
    with Model.open(path) as model:
        for kind in ("f32", "q8_0"):
            found = cache_support(model, kind, kind)
            with Context(model, ContextSettings(n_ctx=256, type_k=kind, type_v=kind)) as context:
                assert found.cache == context.cache
            assert found.refusal is None
            assert not found.falls_back


@pytest.mark.llama
def test_the_report_has_every_cache_type(tmp_path: Path) -> None:
    (path,) = build("llama", tmp_path / "tiny.gguf")
    with Model.open(path) as model:
        described = report(model)
    assert [cache.type_k for cache in described.caches] == list(CACHE_TYPES)
    assert all(cache.refusal is None for cache in described.caches)
    assert described.free_bytes["CPU"] > 0
    assert described.advice == ()


SIZE_LINE = "llama_kv_cache: size =    1.00 MiB (   256 cells,   2 layers, 64/1 seqs)"


@pytest.mark.parametrize(
    ("lines", "rotated"),
    [
        (
            ["attn_rot_k = 1, n_embd_head_k_all = 64", "attn_rot_v = 0, n_embd_head_k_all = 64"],
            True,
        ),
        (
            ["attn_rot_k = 0, n_embd_head_k_all = 64", "attn_rot_v = 0, n_embd_head_k_all = 64"],
            False,
        ),
        (["n_rot_k = 64, n_embd_head_k_all = 64", "n_rot_v = 0, n_embd_head_k_all = 64"], True),
        (["n_rot_k = 0, n_embd_head_k_all = 32", "n_rot_v = 0, n_embd_head_k_all = 32"], False),
        (["rotation = 64"], None),
    ],
)
def test_whether_k_is_rotated_is_read_in_each_form_of_the_log(
    lines: list[str], rotated: bool | None
) -> None:
    cache = allocated(Log(lines=[SIZE_LINE, *(f"llama_kv_cache: {line}" for line in lines)]))
    assert cache is not None
    assert cache.rotated_k is rotated


@pytest.mark.parametrize(
    ("lines", "enabled"),
    [
        (["llama_context: flash_attn            = enabled"], True),
        (["llama_context: flash_attn            = disabled"], False),
        (["llama_context: flash_attn = auto", "resolve: Flash Attention enabled"], True),
        (["resolve: Flash Attention not supported, set to disabled"], False),
        (["llama_context: Flash Attention was auto, set to disabled"], False),
        (["llama_context: flash_attn            = auto"], None),
        ([], None),
    ],
)
def test_flash_attention_is_what_the_log_says_last(lines: list[str], enabled: bool | None) -> None:
    cache = allocated(Log(lines=[SIZE_LINE, *lines]))
    assert cache is not None
    assert cache.flash_attention is enabled
