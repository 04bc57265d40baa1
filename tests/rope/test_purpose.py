"""Which models generate text and keep a cache, by architecture and by keys."""

from __future__ import annotations

import pytest

from ggufrope.errors import RequestError
from ggufrope.rope.architectures import architectures
from ggufrope.rope.purpose import purpose, require_generation
from tests.rope.conftest import make_metadata

NO_CACHE = {
    "bert",
    "clip",
    "dream",
    "eurobert",
    "gemma-embedding",
    "jina-bert-v2",
    "jina-bert-v3",
    "llada",
    "llada-moe",
    "modern-bert",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "rnd1",
    "t5encoder",
    "wavtokenizer-dec",
}
"""`llama_model::create_memory` returns none for these (and t5encoder has no decoder)."""


def test_architectures_without_a_cache() -> None:
    names = architectures()
    found = {name for name in names if not purpose(make_metadata(name)).keeps_cache}
    assert found == NO_CACHE
    silent = {name for name in names if not purpose(make_metadata(name)).generates}
    assert silent == NO_CACHE | {"t5", "dflash", "eagle3", "gemma4-assistant"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"causal": False}, "an embedding model (qwen3.attention.causal is false)"),
        ({"pooling_type": 3}, "an embedding model (qwen3.pooling_type is 3, last)"),
        ({"pooling_type": 4}, "a reranker (qwen3.pooling_type is 4, rank)"),
        ({"pooling_type": 9}, "an embedding model (qwen3.pooling_type is 9)"),
        (
            {"causal": False, "pooling_type": 1},
            "an embedding model (qwen3.attention.causal is false; qwen3.pooling_type is 1, mean)",
        ),
    ],
)
def test_keys_of_an_embedding_model(fields: dict[str, object], reason: str) -> None:
    found = purpose(make_metadata("qwen3", **fields))
    assert (found.generates, found.keeps_cache, found.reason) == (False, True, reason)


@pytest.mark.parametrize(
    "fields", [{}, {"causal": True}, {"pooling_type": 0}, {"causal": True, "pooling_type": 0}]
)
def test_a_generative_model_may_say_so(fields: dict[str, object]) -> None:
    found = purpose(make_metadata("qwen3", **fields))
    assert (found.generates, found.keeps_cache, found.reason) == (True, True, "")


def test_an_unknown_architecture_is_taken_for_a_generative_one() -> None:
    assert purpose(make_metadata("tomorrow")).generates


def test_what_measures_text_refuses_the_others() -> None:
    require_generation(make_metadata("llama"), "m.gguf")
    with pytest.raises(RequestError, match=r"m\.gguf does not generate text .* an encoder, which"):
        require_generation(make_metadata("nomic-bert"), "m.gguf")
