"""What is advised, in which order, and that a patch accepts each of it."""

from __future__ import annotations

import itertools
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from ggufrope_cli.app import build as build_app
from ggufrope_cli.options_scaling import ScalingOptions
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufrope.advice.advise import MEASURED, advise
from ggufrope.container.types import Header, Span, TensorInfo
from ggufrope.errors import RequestError
from ggufrope.patching.command import FLAGS
from ggufrope.patching.compose import encode_request, patched, refusal
from ggufrope.rope.encode import express
from ggufrope.rope.metadata import FactorTensor, RopeMetadata
from ggufrope.rope.scaling import Yarn
from tests.patching.states import STATES, state, trained_tokens

GIB = 1 << 30
MODEL = RopeMetadata(
    architecture="qwen2",
    context_length=8192,
    block_count=24,
    embedding_length=896,
    head_count=14,
    head_count_kv=2,
)
HEADER = Header(
    version=3,
    byte_order="<",
    key_values=(),
    tensors=(
        TensorInfo(
            name="token_embd.weight",
            shape=(896, 150000),
            type=0,
            offset=0,
            length=GIB,
            span=Span(offset=0, length=0),
        ),
    ),
    alignment=32,
    data_offset=0,
    file_size=0,
)


def methods(target: int, **fields: Any) -> list[str]:
    model = replace(MODEL, **fields)
    return [option.method for option in advise(HEADER, model, target_context=target).options]


def test_a_context_within_reach_needs_no_patch() -> None:
    found = advise(HEADER, MODEL, target_context=8192)
    assert [option.method for option in found.options] == ["as it is"]
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("target", "fields", "expected"),
    [
        (16384, {}, ["YaRN", "NTK-aware", "linear"]),
        (32768, {}, ["YaRN", "NTK-aware", "linear"]),
        (32768, {"scaling_type": "linear", "factor": 2.0}, ["linear", "NTK-aware"]),
        (16384, {"scaling_type": "yarn", "factor": 4.0, "original_context": 2048}, ["YaRN"]),
        (
            32768,
            {"architecture": "llama"},
            ["YaRN", "YaRN in long factors only", "NTK-aware", "linear"],
        ),
        (
            131072,
            {"architecture": "llama"},
            ["YaRN", "YaRN in long factors only", "NTK-aware", "linear", "searched factors"],
        ),
        (16384, {"architecture": "llama4"}, ["raise the context length"]),
    ],
)
def test_the_order(target: int, fields: dict[str, Any], expected: list[str]) -> None:
    assert methods(target, **fields) == expected


def test_a_scaled_model_is_scaled_from_its_trained_context() -> None:
    model = replace(MODEL, scaling_type="yarn", factor=4.0, original_context=2048)
    found = advise(HEADER, model, target_context=16384)
    assert (found.original_context, found.ratio) == (8192, 2.0)
    assert found.trained.source == "YaRN's factor 4 times the original 2048"
    assert found.options[0].scaling == Yarn(factor=8, original_context=2048)
    assert found.options[0].commands[0].endswith("--scaling yarn --target-ctx 16384")


def test_a_rotation_that_reaches_further_than_the_context_length_needs_no_scaling() -> None:
    model = replace(MODEL, scaling_type="yarn", factor=4.0, original_context=4096)
    option = advise(HEADER, model, target_context=16384).options[0]
    assert option.method == "raise the context length"
    assert option.commands[0].endswith("--scaling none --target-ctx 16384")


def test_qwen3_is_scaled_from_what_its_authors_say() -> None:
    model = replace(MODEL, architecture="qwen3", context_length=40960, key_length=128)
    (yarn,) = (
        o for o in advise(HEADER, model, target_context=131072).options if o.method == "YaRN"
    )
    assert yarn.scaling == Yarn(factor=4, original_context=32768)
    assert yarn.commands[0].endswith("--target-ctx 131072 --orig-ctx 32768")


def test_native_factors_are_scaled_from_the_context_they_reach() -> None:
    factors = FactorTensor(name="rope_freqs.weight", length=32, values=(1.0,) * 32)
    model = replace(MODEL, architecture="llama", original_context=2048, factor_tensors=(factors,))
    assert advise(HEADER, model, target_context=16384).ratio == 2.0


@pytest.mark.parametrize("name", ["qwen2", "llama", "phi3", "gemma3", "granite"])
def test_every_scaling_that_is_advised_can_be_written(name: str) -> None:
    model = replace(MODEL, architecture=name, sliding_window=512)
    options = advise(HEADER, model, target_context=65536).options
    assert len(options) >= 3
    for option in options:
        if option.scaling is not None:
            express(option.scaling, model, context_length=65536)
        assert option.reasons
        assert option.commands


def factor_tensor(name: str, last: float) -> FactorTensor:
    values = tuple(np.geomspace(1, last, 32).tolist())
    return FactorTensor(name=f"{name}.weight", length=32, values=values)


LONGROPE = {
    "architecture": "phi3",
    "context_length": 131072,
    "original_context": 4096,
    "scaling_type": "longrope",
    "attn_factor": 1.19,
    "factor_tensors": (
        factor_tensor("rope_factors_long", 60.0),
        factor_tensor("rope_factors_short", 1.2),
    ),
}
MLA = {
    "architecture": "deepseek2",
    "context_length": 131072,
    "scaling_type": "yarn",
    "factor": 32.0,
    "original_context": 4096,
    "yarn_log_multiplier": 0.1,
}


@pytest.mark.parametrize(
    ("fields", "methods_", "options"),
    [
        (
            {"architecture": "gemma3", "context_length": 131072, "factor": 8.0},
            ["linear", "NTK-aware"],
            "--scaling linear --target-ctx 262144",
        ),
        (MLA, ["YaRN"], "--scaling yarn --target-ctx 262144"),
        (
            {**MLA, "architecture": "mistral3", "yarn_log_multiplier": 1.0},
            ["YaRN", "YaRN in long factors only", "NTK-aware", "linear"],
            "--scaling yarn --target-ctx 262144",
        ),
        (
            LONGROPE,
            ["YaRN", "YaRN in long factors only", "NTK-aware", "linear"],
            "--scaling yarn --target-ctx 262144",
        ),
        (
            {
                "architecture": "llama",
                "context_length": 131072,
                "factor_tensors": (factor_tensor("rope_freqs", 8.0),),
            },
            ["YaRN", "YaRN in long factors only", "NTK-aware", "linear"],
            "--scaling yarn --target-ctx 262144",
        ),
    ],
)
def test_a_scaled_model_is_only_advised_what_starts_from_its_rotation(
    fields: dict[str, Any], methods_: list[str], options: str
) -> None:
    model = replace(MODEL, **fields)
    advice = advise(HEADER, model, target_context=262144)
    assert [option.method for option in advice.options] == methods_
    assert advice.options[0].commands[0].endswith(options)
    dropped = [warning for warning in advice.warnings if "not proposed" in warning]
    assert len(dropped) == (len(methods_) < 3)


@settings(max_examples=200, deadline=None)
@given(which=st.sampled_from(STATES), growth=st.floats(1.01, 64))
def test_what_is_advised_is_what_a_patch_accepts(which: tuple[str, str], growth: float) -> None:
    """The very words of each command, read back by the command line, make a patch."""
    file = state(*which)
    target = round(growth * trained_tokens(file))
    advice = advise(HEADER, file, target_context=target)
    assert advice.options or advice.warnings
    patch = typer.main.get_command(build_app("patch")).commands["patch"]  # type: ignore[attr-defined]
    commands = 0
    for option in advice.options:
        for command in option.commands:
            words = shlex.split(command)
            if words[1] != "patch":
                continue
            given_ = patch.make_context("patch", words[2:]).params
            request = ScalingOptions.of({name: given_[name] for name in FLAGS}).request()
            assert refusal(request, file) is None
            after = patched(file, encode_request(request, file)[1])
            assert (after.context_length or 0) == target
            commands += 1
    patches = [option for option in advice.options if option.method != "searched factors"]
    assert commands == len(patches)


@pytest.mark.parametrize(
    ("file", "output"),
    [
        ("model.gguf", "model-yarn-32768.gguf"),
        ("a b/it's.gguf", "a b/it's-yarn-32768.gguf"),
        ("-x.gguf", "./-x-yarn-32768.gguf"),
        ("m-00001-of-00003.gguf", "m-yarn-32768-00001-of-00003.gguf"),
        ("hf:org/repo/m.gguf", "m-yarn-32768.gguf"),
        ("ollama:llama3:8b", "8b-yarn-32768.gguf"),
        ("$(reboot)", "$(reboot)-yarn-32768.gguf"),
    ],
)
def test_commands_can_be_pasted(file: str, output: str) -> None:
    option = advise(HEADER, MODEL, target_context=32768, file=file).options[0]
    patch, *others = map(shlex.split, option.commands)
    given_ = f"./{file}" if file.startswith("-") else file
    assert patch[:5] == ["ggufrope", "patch", given_, "-o", output]
    assert others == [
        ["ggufrope", "probe", output],
        ["ggufrope", "validate", output],
        ["llama-server", "-m", output, "-c", "32768"],
    ]


def test_the_comparison_has_the_schemes_that_a_patch_accepts() -> None:
    found = advise(HEADER, MODEL, target_context=32768, file="a b.gguf").comparison
    assert found == (
        "ggufrope compare 'a b.gguf' --target-ctx 32768 --scaling none,yarn,yarn-6x,ntk,linear"
    )
    assert advise(HEADER, MODEL, target_context=1024).comparison is None


def test_a_larger_factor_is_for_models_whose_factor_is_ours_to_choose() -> None:
    (reason,) = [
        r for r in advise(HEADER, MODEL, target_context=32768).options[0].reasons if "larger" in r
    ]
    assert reason.endswith("try a larger factor, such as 6")
    trained = replace(MODEL, original_context=4096, scaling_type="yarn", factor=2.0)
    found = advise(HEADER, trained, target_context=32768)
    assert not any("larger" in reason for option in found.options for reason in option.reasons)
    assert found.comparison is not None
    assert "x," not in found.comparison


def test_searched_factors_come_last_and_promise_nothing() -> None:
    model = replace(MODEL, architecture="llama")
    option = advise(HEADER, model, target_context=131072).options[-1]
    assert option.method == "searched factors"
    assert "may do better" in option.reasons[0]
    assert option.commands == ("ggufrope search MODEL.gguf --target-ctx 131072",)


def test_how_far_counts_from_the_context_that_the_file_reaches() -> None:
    reached = replace(MODEL, context_length=131072, original_context=4096)
    model = replace(reached, scaling_type="yarn", factor=32.0)
    found = advise(HEADER, model, target_context=262144)
    assert found.options[0].reasons[0] == "2 times the trained context is within YaRN's usual reach"
    assert not any("is far" in warning for warning in found.warnings)


def test_a_far_target_is_warned_of() -> None:
    (warning,) = advise(HEADER, MODEL, target_context=131072).warnings
    assert "16 times the trained context is far" in warning


RANKING = json.loads(
    (Path(__file__).parents[2] / "benchmarks" / "results" / "method_ranking.json").read_text()
)
METHODS = {
    "none": "as it is",
    "yarn": "YaRN",
    "yarn, long factors only": "YaRN in long factors only",
    "ntk": "NTK-aware",
    "linear": "linear",
}


def test_the_evidence_is_what_the_benchmark_measured() -> None:
    trained = RANKING["trained_context"]
    far = [row for row in RANKING["methods"] if row["context_tokens"] > trained]
    found: dict[str, dict[int, float]] = {}
    for row in far:
        assert row["context_tokens"] == row["multiple"] * trained
        found.setdefault(METHODS[row["method"]], {})[row["multiple"]] = round(row["recall"], 3)
    assert found == MEASURED
    near = {row["method"]: row["recall"] for row in RANKING["methods"] if row not in far}
    assert near == {**dict.fromkeys(METHODS, 1.0), "linear": 0.0}


@pytest.mark.parametrize("times", [2, 4, 8, 16])
def test_the_order_is_that_of_the_evidence(times: int) -> None:
    model = replace(MODEL, architecture="llama")
    ranked = [
        option.method
        for option in advise(HEADER, model, target_context=times * 8192).options
        if option.method in MEASURED
    ]
    assert len(ranked) == 4
    measured = {
        METHODS[row["method"]]: row
        for row in RANKING["methods"]
        if row["context_tokens"] == times * RANKING["trained_context"]
    }
    for better, worse in itertools.combinations(ranked, 2):
        assert measured[better]["recall_high"] >= measured[worse]["recall_low"]
    assert MEASURED["YaRN"][times] >= MEASURED["NTK-aware"][times] >= MEASURED["linear"][times]


def test_reasons_cite_what_was_measured_of_an_unscaled_model_alone() -> None:
    yarn = advise(HEADER, MODEL, target_context=24576).options[0]
    assert (
        "measured on a small model at 4 times: 100% of needles recalled (without scaling 4%)"
        in yarn.reasons
    )
    far = advise(HEADER, MODEL, target_context=17 * 8192).options[0]
    assert "nothing was measured beyond 16 times" in far.reasons
    scaled = replace(MODEL, scaling_type="yarn", factor=4.0, original_context=2048)
    reasons = advise(HEADER, scaled, target_context=16384).options[0].reasons
    assert not any("measured" in reason for reason in reasons)


def test_memory_names_the_cache_that_fits() -> None:
    found = advise(HEADER, MODEL, target_context=32768, memory_bytes=int(1.6 * GIB))
    sizes = [need.total_bytes for need in found.memory]
    assert sizes == sorted(sizes, reverse=True)
    assert any("f16 does not fit 1.6 GiB: use a q8_0/q8_0 cache" in w for w in found.warnings)
    small = advise(HEADER, MODEL, target_context=32768, memory_bytes=int(1.35 * GIB))
    assert any("the longest context that fits is" in warning for warning in small.warnings)
    tiny = advise(HEADER, MODEL, target_context=32768, memory_bytes=GIB)
    assert any("no context fits at all" in warning for warning in tiny.warnings)


def test_a_cache_that_the_build_runs_slowly_is_left_out_and_named() -> None:
    found = advise(HEADER, MODEL, target_context=32768, slow_pairs={("q8_0", "q4_0")})
    assert ("q8_0", "q4_0") not in {(need.k_type, need.v_type) for need in found.memory}
    (warning,) = [each for each in found.warnings if "left out" in each]
    assert "q8_0/q4_0" in warning
    plain = advise(HEADER, MODEL, target_context=32768)
    assert not any("left out" in each for each in plain.warnings)


@pytest.mark.parametrize(
    ("fields", "target", "message"),
    [
        ({"architecture": "mamba"}, 16384, "no layer of this mamba model rotates"),
        ({"context_length": None}, 16384, "context_length is missing"),
        ({}, 0, "`target_context` 0"),
    ],
)
def test_what_cannot_be_advised(fields: dict[str, Any], target: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        advise(HEADER, replace(MODEL, **fields), target_context=target)
