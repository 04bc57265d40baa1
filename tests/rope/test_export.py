"""Exports say what takes effect: read back, they give the same rotation."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from ggufrope.errors import RequestError
from ggufrope.rope.effective import RopeOverrides
from ggufrope.rope.encode import Expression, express
from ggufrope.rope.export import Tool, export
from ggufrope.rope.frequencies import frequencies
from ggufrope.rope.huggingface import from_config
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.metadata import RopeMetadata
from ggufrope.rope.overrides import command_flags, context_overrides, recognize
from ggufrope.rope.scaling import (
    DynamicNtk,
    FrequencyFactors,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    RopeScaling,
    Unscaled,
    Yarn,
)

Metadata = Callable[..., RopeMetadata]
Applied = Callable[[Expression, RopeMetadata], RopeMetadata]
SCHEMES: list[RopeScaling] = [
    Unscaled(),
    Linear(factor=4.0),
    Yarn(factor=4.0, original_context=2048, attention_factor=1.0),
    Llama3(factor=8.0, original_context=8192),
    FrequencyFactors(factors=(2.0,) * 32, attention_factor=1.5),
    LongRope(
        long_factors=(4.0,) * 32,
        short_factors=(1.0,) * 32,
        original_context=2048,
        attention_factor=1.25,
    ),
]
RUN_TIME: list[RopeScaling] = [
    Unscaled(),
    Linear(factor=4.0),
    NtkAware(factor=4.0),
    DynamicNtk(factor=4.0, original_context=2048),
    Yarn(factor=4.0, original_context=2048, beta_fast=16.0, beta_slow=2.0, ext_factor=0.5),
]


@pytest.mark.parametrize("scaling", SCHEMES, ids=lambda s: type(s).__name__)
def test_what_was_written_is_recognized(
    metadata: Metadata, applied: Applied, scaling: RopeScaling
) -> None:
    before = metadata()
    found = recognize(applied(express(scaling, before), before))
    assert found.base == 10000.0
    assert found.scaling == scaling


def test_an_attention_factor_alone_is_not_lost(metadata: Metadata) -> None:
    found = recognize(metadata(attn_factor=1.5)).scaling
    assert found == FrequencyFactors(factors=(1.0,) * 32, attention_factor=1.5)


def test_factors_under_a_factor_have_no_name(metadata: Metadata) -> None:
    model = metadata(factor=2.0, factors={"rope_freqs.weight": np.ones(32)})
    with pytest.raises(RequestError, match="no scheme with a name"):
        recognize(model)


@pytest.mark.parametrize("scaling", RUN_TIME, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral3", "phi2"])
def test_context_overrides_give_the_scheme(
    metadata: Metadata, name: str, scaling: RopeScaling
) -> None:
    overrides, ignored = context_overrides(scaling, metadata(name), context_tokens=8192)
    found = effective(metadata(name), context_tokens=8192, overrides=overrides).groups[0]
    wanted = frequencies(scaling, n_rot=64, base=10000.0, context_tokens=8192)
    np.testing.assert_allclose(found.inverse_frequencies, wanted.inverse_frequencies, rtol=1e-12)
    assert found.magnitude == pytest.approx(wanted.magnitude)
    assert ignored == ()


def test_what_context_overrides_cannot_express_is_listed(metadata: Metadata) -> None:
    scheme = Yarn(factor=4.0, original_context=2048, attention_factor=1.0, truncate=False)
    _, ignored = context_overrides(scheme, metadata())
    assert [item.parameter for item in ignored] == ["attention_factor", "truncate"]
    with pytest.raises(RequestError, match="exists only as factor tensors"):
        context_overrides(SCHEMES[-1], metadata())


def test_flags_by_hand() -> None:
    overrides = RopeOverrides(scaling_type="yarn", freq_scale=0.25, yarn_orig_ctx=2048)
    assert command_flags(overrides) == (
        *("--rope-scaling", "yarn"),
        *("--rope-freq-scale", "0.25"),
        *("--yarn-orig-ctx", "2048"),
    )
    assert command_flags(RopeOverrides()) == ()


def test_llama_server_flags_give_a_bare_file_the_same_rotation(metadata: Metadata) -> None:
    model = metadata(scaling_type="yarn", factor=4.0, original_context=2048, freq_base=5e5)
    words = shlex.split(export(model, "llama-server", context_tokens=8192).text)
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    assert flags.pop("--model") == "MODEL.gguf"
    assert flags.pop("--ctx-size") == "8192"
    names = {"--rope-scaling": "scaling_type", "--yarn-orig-ctx": "yarn_orig_ctx"}
    given: dict[str, Any] = {}
    for flag, value in flags.items():
        name = names.get(flag, flag.removeprefix("--").removeprefix("rope-").replace("-", "_"))
        given[name] = value if name == "scaling_type" else float(value)
    found = effective(metadata(), context_tokens=8192, overrides=RopeOverrides(**given)).groups[0]
    wanted = effective(model, context_tokens=8192).groups[0]
    np.testing.assert_allclose(found.inverse_frequencies, wanted.inverse_frequencies, rtol=1e-8)
    assert found.magnitude == pytest.approx(wanted.magnitude)


@pytest.mark.parametrize(
    "scaling", [SCHEMES[i] for i in (0, 1, 2, 3, 5)], ids=lambda s: type(s).__name__
)
def test_a_huggingface_export_reads_back(
    metadata: Metadata, applied: Applied, scaling: RopeScaling
) -> None:
    before = metadata()
    after = applied(express(scaling, before), before)
    config = json.loads(export(after, "huggingface").text)
    assert from_config({"hidden_size": 256, **config}).scaling == scaling


def test_vllm_takes_the_same_parameters(metadata: Metadata) -> None:
    model = metadata(scaling_type="linear", factor=4.0)
    words = shlex.split(export(model, "vllm").text)
    overrides = json.loads(words[words.index("--hf-overrides") + 1])
    assert from_config({"hidden_size": 256, **overrides}).scaling == Linear(factor=4.0)


def test_llama_cpp_python_unsets_what_it_would_send(metadata: Metadata) -> None:
    assert export(metadata(), "llama-cpp-python").text == (
        "Llama(model_path='MODEL.gguf', n_ctx=2048, rope_scaling_type=0, rope_freq_base=10000.0, "
        "yarn_attn_factor=-1.0, yarn_beta_fast=-1.0, yarn_beta_slow=-1.0)"
    )


def test_the_others_by_hand(metadata: Metadata) -> None:
    linear = metadata(scaling_type="linear", factor=4.0)
    assert export(linear, "koboldcpp").text == (
        "koboldcpp --model MODEL.gguf --contextsize 2048 --ropeconfig 0.25 10000"
    )
    assert export(linear, "ollama").text == "FROM ./MODEL.gguf\nPARAMETER num_ctx 2048"
    assert export(linear, "axolotl").text.splitlines() == [
        "sequence_len: 2048",
        "overrides_of_model_config:",
        "  rope_theta: 10000.0",
        "  rope_scaling:",
        '    rope_type: "linear"',
        "    factor: 4.0",
    ]


def test_what_a_tool_cannot_express_is_listed(metadata: Metadata, applied: Applied) -> None:
    before = metadata()
    factors = applied(express(FrequencyFactors(factors=(2.0,) * 32), before), before)
    assert len(get_args(Tool)) == 7
    for tool in get_args(Tool):
        assert export(factors, tool).inexpressible, tool
    yarn = metadata(scaling_type="yarn", factor=4.0, original_context=2048)
    silent = {tool for tool in get_args(Tool) if not export(yarn, tool).inexpressible}
    assert silent == {"llama-server", "llama-cpp-python", "huggingface", "axolotl"}
    plain = metadata()
    assert not any(export(plain, tool).inexpressible for tool in get_args(Tool))


def test_an_unknown_tool_is_refused(metadata: Metadata) -> None:
    with pytest.raises(RequestError, match="cannot export to 'word'"):
        export(metadata(), "word")  # type: ignore[arg-type]


def test_factor_values_are_needed(metadata: Metadata) -> None:
    model = metadata(factors={"rope_freqs.weight": np.ones(32)})
    unread = replace(model.factor_tensors[0], values=None)
    with pytest.raises(RequestError, match="were not read"):
        recognize(replace(model, factor_tensors=(unread,)))
