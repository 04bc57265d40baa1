"""The generated table, against what a reader of the source finds."""

from __future__ import annotations

import re

import pytest

from ggufrope.rope.architectures import Architecture, architecture, architectures, source
from ggufrope.rope.keys import FACTOR_TENSORS, KEYS, ROPE_FACTORS_LONG, ROPE_FREQS


def named(predicate: str) -> set[str]:
    return {name for name, arch in architectures().items() if getattr(arch, predicate)}


def test_it_names_the_commit() -> None:
    assert re.fullmatch("[0-9a-f]{40}", source().commit)
    assert "llama-cpp-python" in source().package


def test_the_architectures_that_apply_factors() -> None:
    assert named("loads_factors") == {
        *("apertus", "arcee", "deci", "dflash", "eagle3", "exaone", "exaone-moe", "exaone4"),
        *("gemma4", "gemma4-assistant", "granite", "granite_swa", "granitehybrid", "granitemoe"),
        *("llama", "llama-embed", "llama4", "minicpm", "minicpm3", "mistral3", "nanbeige"),
        *("phi3", "phimoe", "step35"),
    }


@pytest.mark.parametrize(
    "name",
    ["qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "gpt-oss", "glm4", "command-r", "cohere2"],
)
def test_these_load_no_factors(name: str) -> None:
    assert architecture(name).tensors == ()


@pytest.mark.parametrize("name", ["falcon-h1", "llada", "pangu-embedded", "cogvlm"])
def test_these_load_factors_and_never_apply_them(name: str) -> None:
    assert architecture(name).tensors
    assert not architecture(name).loads_factors


def test_who_reads_the_yarn_keys() -> None:
    def readers(field: str) -> set[str]:
        return {name for name, arch in architectures().items() if field in arch.reads}

    assert readers("yarn_beta_fast") == readers("yarn_beta_slow") == {"grok", "mistral3"}
    assert readers("yarn_ext_factor") == readers("yarn_attn_factor") == {"grok"}
    assert readers("yarn_log_multiplier") == {"deepseek2", "deepseek32", "mistral3", "mistral4"}


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        *(("llama", "norm"), ("mistral3", "norm"), ("command-r", "norm"), ("granite", "norm")),
        *(("qwen2", "neox"), ("gemma3", "neox"), ("phi3", "neox"), ("gpt-oss", "neox")),
        *(("qwen2vl", "mrope"), ("qwen3vl", "imrope"), ("mamba", "none"), ("gpt2", "none")),
    ],
)
def test_rope_types(name: str, rope: str) -> None:
    assert architecture(name).rope == rope


def test_llama_loads_factor_tensors_by_the_scaling_type() -> None:
    llama = architecture("llama")
    assert llama.loads(ROPE_FREQS, "linear")
    assert not llama.loads(ROPE_FREQS, "longrope")
    assert llama.loads(ROPE_FACTORS_LONG, "longrope")
    assert not llama.loads(ROPE_FACTORS_LONG, "yarn")
    phi = architecture("phi3")
    assert phi.loads(ROPE_FACTORS_LONG, "linear")
    assert not phi.loads(ROPE_FREQS, "linear")


@pytest.mark.parametrize("arch", architectures().values(), ids=lambda a: a.name)
def test_every_entry_makes_sense(arch: Architecture) -> None:
    assert set(arch.reads) <= set(KEYS)
    assert set(arch.tensors) <= set(FACTOR_TENSORS)
    assert (arch.step > 0) == (arch.no_rope in ("first", "last") or arch.recurrent == "interval")
    if arch.no_rope == "global":
        assert arch.sliding is not None
    if arch.sliding is not None and not arch.sliding.yarn:
        assert arch.sliding.scale == "1"
