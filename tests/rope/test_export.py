"""Exports say what takes effect: read back, they give the same rotation."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from ggufrope.errors import FileError, RequestError
from ggufrope.patching.exporting import wanted_scaling
from ggufrope.patching.request import ScalingRequest
from ggufrope.rope.effective import LLAMA_FLAGS, RopeOverrides
from ggufrope.rope.encode import Expression, express
from ggufrope.rope.export import Tool, export
from ggufrope.rope.export_llama import Wanted
from ggufrope.rope.frequencies import frequencies
from ggufrope.rope.huggingface import from_config
from ggufrope.rope.keys import KEYS
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


PATH = "models/a model.gguf"
"""A path that a shell has to have quoted."""


def wanted(model: RopeMetadata, **request: Any) -> Wanted:
    return wanted_scaling(ScalingRequest(**request), model, Path(PATH))


def flags_of(text: str) -> dict[str, str]:
    words = shlex.split(text)
    assert len(words) % 2 == 1
    return dict(zip(words[1::2], words[2::2], strict=True))


def test_a_file_that_says_it_all_needs_no_flags(metadata: Metadata) -> None:
    model = metadata(
        scaling_type="yarn", factor=4.0, original_context=2048, context_length=8192, freq_base=5e5
    )
    made = export(model, "llama-server", path=PATH)
    assert made.text == "llama-server -m 'models/a model.gguf' -c 8192"
    assert made.inexpressible == ()
    assert made.notes == ("no flags needed: the file says it all, and llama-server reads it there",)


def test_a_context_beyond_the_file_is_declared(metadata: Metadata) -> None:
    assert flags_of(export(metadata(), "llama-server", path=PATH, context_tokens=8192).text) == {
        "-m": PATH,
        "-c": "8192",
        "--override-kv": "llama.context_length=int:8192",
    }


def test_the_threshold_of_long_factors_stays_where_the_context_rises(metadata: Metadata) -> None:
    factors = {f"rope_factors_{kind}.weight": np.full(32, 2.0) for kind in ("long", "short")}
    model = metadata("phi3", scaling_type="longrope", factors=factors)
    made = export(model, "llama-server", context_tokens=8192)
    assert flags_of(made.text)["--override-kv"] == (
        "phi3.context_length=int:8192,phi3.rope.scaling.original_context_length=int:2048"
    )
    assert made.inexpressible == ()


@pytest.mark.parametrize(
    ("request_", "flags"),
    [
        (
            {"scaling": "linear"},
            {
                "--rope-scaling": "linear",
                "--rope-freq-scale": "0.25",
                "--override-kv": "llama.context_length=int:8192",
            },
        ),
        (
            {"scaling": "ntk"},
            {
                "--rope-freq-base": "41829.3659",
                "--override-kv": "llama.context_length=int:8192",
            },
        ),
        (
            {"scaling": "yarn"},
            {
                "--rope-scaling": "yarn",
                "--rope-freq-scale": "0.25",
                "--yarn-orig-ctx": "2048",
            },
        ),
        (
            {"scaling": "yarn", "beta_fast": 16.0, "freq_base": 5e5},
            {
                "--rope-scaling": "yarn",
                "--rope-freq-base": "500000",
                "--rope-freq-scale": "0.25",
                "--yarn-orig-ctx": "2048",
                "--yarn-beta-fast": "16",
                "--yarn-beta-slow": "1",
            },
        ),
        (
            {"scaling": "yarn", "attn_factor": 1.0},
            {
                "--override-kv": "llama.context_length=int:8192,llama.rope.scaling.type=str:yarn,"
                "llama.rope.scaling.factor=float:4,"
                "llama.rope.scaling.original_context_length=int:2048,"
                "llama.rope.scaling.attn_factor=float:0.878248856"
            },
        ),
    ],
    ids=["linear", "ntk", "yarn", "yarn betas", "yarn attention factor"],
)
def test_llama_server_flags_of_a_scaling_that_is_not_in_the_file(
    metadata: Metadata, request_: dict[str, Any], flags: dict[str, str]
) -> None:
    model = metadata()
    asked = wanted(model, target_context=8192, **request_)
    made = export(model, "llama-server", path=PATH, wanted=asked)
    assert flags_of(made.text) == {"-m": PATH, "-c": "8192", **flags}
    assert made.inexpressible == ()


@pytest.mark.parametrize("scheme", ["linear", "ntk", "dynamic-ntk", "yarn"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3", "cohere2", "olmo2"])
def test_flags_and_keys_rotate_as_a_patched_file(
    metadata: Metadata, name: str, scheme: str
) -> None:
    model = metadata(name, sliding_window=512)
    asked = wanted(model, scaling=scheme, target_context=8192)
    made = export(model, "llama-server", wanted=asked)
    flags = flags_of(made.text)
    overrides = flags.pop("--override-kv", None)
    keys = {model.key(field): field for field in KEYS}
    changes: dict[str, Any] = {}
    for item in [] if overrides is None else overrides.split(","):
        key, _, typed = item.partition("=")
        kind, _, value = typed.partition(":")
        changes[keys[key]] = {"int": int, "float": float, "str": str}[kind](value)
    given: dict[str, Any] = {}
    for field, flag in LLAMA_FLAGS.items():
        if flag in flags:
            value = flags.pop(flag)
            given[field] = value if field == "scaling_type" else float(value)
    assert set(flags) == {"-m", "-c"}
    found = effective(
        replace(model, **changes), context_tokens=8192, overrides=RopeOverrides(**given)
    )
    patched = effective(asked.metadata, context_tokens=8192)
    assert made.inexpressible == ()
    assert len(patched.groups) == len(found.groups) > 0
    for group, target in zip(found.groups, patched.groups, strict=True):
        np.testing.assert_allclose(
            group.inverse_frequencies, target.inverse_frequencies, rtol=1e-6, err_msg=group.name
        )
        assert group.magnitude == pytest.approx(target.magnitude)


def test_yarn_flags_whose_cap_rounds_down_become_keys(metadata: Metadata) -> None:
    """llama.cpp sets the cap to original / scale in float32, after it has read every key."""
    model = metadata(context_length=32767)
    short = 0
    for factor in range(2, 40):
        asked = wanted(model, scaling="yarn", factor=float(factor))
        made = export(model, "llama-server", wanted=asked)
        scale = np.float32(1) / np.float32(factor)
        reach = int(np.float32(32767) / scale)
        flags = flags_of(made.text)
        assert ("--rope-scaling" in flags) is (reach >= 32767 * factor)
        assert made.inexpressible == ()
        short += reach < 32767 * factor
    assert short > 0


def test_llama_cpp_python_unsets_what_it_would_send(metadata: Metadata) -> None:
    assert export(metadata(), "llama-cpp-python", path=PATH).text == (
        "Llama(model_path='models/a model.gguf', n_ctx=2048, "
        "yarn_attn_factor=-1.0, yarn_beta_fast=-1.0, yarn_beta_slow=-1.0)"
    )
    asked = wanted(metadata(), scaling="linear", target_context=4096)
    assert export(metadata(), "llama-cpp-python", path=PATH, wanted=asked).text == (
        "Llama(model_path='models/a model.gguf', n_ctx=4096, rope_scaling_type=1, "
        "rope_freq_scale=0.5, yarn_attn_factor=-1.0, yarn_beta_fast=-1.0, yarn_beta_slow=-1.0, "
        "kv_overrides={'llama.context_length': 4096})"
    )


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


def test_engines_take_the_same_section_under_text_config(metadata: Metadata) -> None:
    model = metadata("qwen3vl", dimension_sections=(12, 10, 10, 0))
    asked = wanted(model, scaling="yarn", target_context=8192, attn_factor=1.0)
    section = json.loads(export(model, "huggingface", wanted=asked).text)
    assert section == {
        "text_config": {
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 2048,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "attention_factor": 1.0,
                "rope_theta": 10000.0,
                "mrope_section": [12, 10, 10],
                "mrope_interleaved": True,
            },
        }
    }
    # vLLM and SGLang multiply YaRN's own attention factor by attn_factor.
    section["text_config"]["rope_parameters"]["attn_factor"] = 0.878248856
    tools: dict[Tool, str] = {"vllm": "--hf-overrides", "sglang": "--json-model-override-args"}
    for tool, flag in tools.items():
        words = shlex.split(export(model, tool, path=PATH, wanted=asked).text)
        assert json.loads(words[words.index(flag) + 1]) == section
        assert PATH in words


def test_engines_multiply_the_length_of_linear_scaling_themselves(metadata: Metadata) -> None:
    asked = wanted(metadata(), scaling="linear", target_context=8192)
    words = shlex.split(export(metadata(), "vllm", wanted=asked).text)
    assert json.loads(words[words.index("--hf-overrides") + 1]) == {
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    }


def test_layers_that_differ_in_a_config_of_one_section_are_named(metadata: Metadata) -> None:
    made = export(metadata("plamo3", sliding_window=512, freq_base=5e5), "huggingface")
    (sentence,) = made.inexpressible
    assert sentence == (
        "sliding-window layers rotate otherwise than global layers, and the config of plamo3 has "
        "one section for all"
    )


def test_a_model_that_does_not_rotate_has_no_section(metadata: Metadata) -> None:
    with pytest.raises(RequestError, match="no layer of this model rotates"):
        export(metadata("bert"), "huggingface")


def test_the_others_by_hand(metadata: Metadata) -> None:
    model = metadata()
    asked = wanted(model, scaling="linear", target_context=8192)
    texts = {
        "koboldcpp": "koboldcpp --model 'models/a model.gguf' --contextsize 8192 "
        "--ropeconfig 0.25 10000 --overridekv llama.context_length=int:8192",
        "ollama": "FROM ./models/a model.gguf\nPARAMETER num_ctx 8192",
        "lmstudio": "lms import --symbolic-link 'models/a model.gguf'\n"
        "lms load 'a model' --context-length 8192",
        "axolotl": "sequence_len: 8192\n"
        "overrides_of_model_config:\n"
        "  max_position_embeddings: 8192\n"
        "  rope_parameters:\n"
        '    rope_type: "linear"\n'
        "    factor: 4.0\n"
        "    rope_theta: 10000.0",
    }
    for tool, text in texts.items():
        assert export(model, tool, path=PATH, wanted=asked).text == text  # type: ignore[arg-type]


def test_koboldcpp_takes_yarn_by_keys(metadata: Metadata) -> None:
    asked = wanted(metadata(), scaling="yarn", target_context=8192)
    made = export(metadata(), "koboldcpp", path=PATH, wanted=asked)
    assert flags_of(made.text)["--overridekv"] == (
        "llama.context_length=int:8192,llama.rope.scaling.type=str:yarn,"
        "llama.rope.scaling.factor=float:4,llama.rope.scaling.original_context_length=int:2048"
    )
    assert made.inexpressible == ()


def test_koboldcpp_has_no_flags_for_betas(metadata: Metadata) -> None:
    asked = wanted(metadata(), scaling="yarn", target_context=8192, beta_fast=8.0)
    (lost,) = export(metadata(), "koboldcpp", wanted=asked).inexpressible
    assert lost.startswith("the frequencies of global layers, which would be ")
    assert export(metadata(), "llama-server", wanted=asked).inexpressible == ()


def test_copies_of_split_models_and_blobs_have_names_that_work(metadata: Metadata) -> None:
    request = ScalingRequest(scaling="llama3", target_context=8192)
    names = {
        "a/big-00001-of-00003.gguf": "a/big-llama3-00001-of-00003.gguf",
        "blobs/sha256-0123": "model-llama3.gguf",
    }
    for path, copy in names.items():
        remedy = wanted_scaling(request, metadata(), Path(path)).remedy
        assert f"patch {path} -o {copy} --scaling" in remedy


def test_what_a_tool_cannot_express_is_named(metadata: Metadata, applied: Applied) -> None:
    model = metadata()
    asked = wanted(model, scaling="llama3", target_context=8192)
    lost = {tool for tool in get_args(Tool) if export(model, tool, wanted=asked).inexpressible}
    assert lost == {"llama-server", "llama-cpp-python", "ollama", "lmstudio", "koboldcpp"}
    (sentence,) = export(model, "llama-server", path=PATH, wanted=asked).inexpressible
    assert sentence == (
        "Llama3: it needs factor tensors, which no option can give; write it into a copy: "
        "ggufrope patch 'models/a model.gguf' -o 'models/a model-llama3.gguf' --scaling llama3 "
        "--target-ctx 8192"
    )
    written = applied(express(FrequencyFactors(factors=(2.0,) * 32), model), model)
    files = (model, written, metadata(scaling_type="linear", factor=4.0))
    assert len(get_args(Tool)) == 9
    for tool in get_args(Tool):
        for file in files:
            assert export(file, tool).inexpressible == (), tool
    for tool in ("ollama", "lmstudio"):
        (capped,) = export(model, tool, context_tokens=4096).inexpressible  # type: ignore[arg-type]
        assert "caps the context at the file's own 2048" in capped


@pytest.mark.parametrize("tool", get_args(Tool))
def test_a_file_that_does_not_load_has_no_settings(metadata: Metadata, tool: Tool) -> None:
    with pytest.raises(FileError, match="head size, 64"):
        export(metadata("llama", dimension_count=32), tool)


def test_an_unknown_tool_is_refused(metadata: Metadata) -> None:
    with pytest.raises(RequestError, match="cannot export to 'word'"):
        export(metadata(), "word")  # type: ignore[arg-type]


def test_a_path_is_never_an_option(metadata: Metadata) -> None:
    assert shlex.split(export(metadata(), "llama-server", path="-x.gguf").text)[2] == "./-x.gguf"


def test_factor_values_are_needed(metadata: Metadata) -> None:
    model = metadata(factors={"rope_freqs.weight": np.ones(32)})
    unread = replace(model.factor_tensors[0], values=None)
    with pytest.raises(RequestError, match="were not read"):
        recognize(replace(model, factor_tensors=(unread,)))
