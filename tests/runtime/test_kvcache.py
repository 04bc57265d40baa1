"""Cache types: their sizes, and which pairs run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import pytest

from fixtures.make import build
from ggufrope.container.ggml import CACHE_TYPES
from ggufrope.errors import UnsupportedCacheError
from ggufrope.runtime.context import Context
from ggufrope.runtime.doctor import report
from ggufrope.runtime.library import Log
from ggufrope.runtime.memory import cache_support
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings
from ggufrope.runtime.sizing import allocated

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", CACHE_TYPES)
def test_types_are_those_of_ggml(name: str) -> None:
    kind = CACHE_TYPES[name]
    number = gguf.GGMLQuantizationType[name.upper()]
    assert kind.number == number
    assert (kind.block_size, kind.block_bytes) == gguf.GGML_QUANT_SIZES[number]


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


def test_a_context_that_is_only_sized_agrees_with_one_that_is_made(tmp_path: Path) -> None:
    (path,) = build("qwen2", tmp_path / "tiny.gguf")
    with Model.open(path) as model:
        for kind in ("f32", "q8_0"):
            found = cache_support(model, kind, kind)
            with Context(model, ContextSettings(n_ctx=256, type_k=kind, type_v=kind)) as context:
                assert found.cache == context.cache
            assert found.refusal is None
            assert not found.falls_back


def test_the_report_has_every_cache_type(tmp_path: Path) -> None:
    (path,) = build("llama", tmp_path / "tiny.gguf")
    with Model.open(path) as model:
        described = report(model)
    assert [cache.type_k for cache in described.caches] == list(CACHE_TYPES)
    assert all(cache.refusal is None for cache in described.caches)
    assert described.free_bytes["CPU"] > 0
    assert described.can_offload or any("GGML_CUDA" in line for line in described.advice)


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
        (["n_rot_k = 64", "n_rot_v = 64"], None),
    ],
)
def test_a_log_of_another_version_does_not_say_whether_k_is_rotated(
    lines: list[str], rotated: bool | None
) -> None:
    cache = allocated(Log(lines=[SIZE_LINE, *(f"llama_kv_cache: {line}" for line in lines)]))
    assert cache is not None
    assert cache.rotated_k is rotated
