"""A scaling starts from the rotation that the file has, or it is refused with the reason."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.make import build
from ggufrope.errors import RequestError
from ggufrope.patching.compose import check_start, encode_request, patched, refusal
from ggufrope.patching.inspection import read_model
from ggufrope.patching.plan import plan_patch
from ggufrope.patching.request import ScalingRequest
from ggufrope.rope.effective import LayerGroup
from ggufrope.rope.keys import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.metadata import FactorTensor, RopeMetadata
from ggufrope.rope.trained import TRAINED_CONTEXT, declared_scaling, trained_context

PLAIN = RopeMetadata(
    architecture="llama",
    context_length=8192,
    block_count=4,
    embedding_length=1024,
    head_count=8,
    freq_base=500000.0,
)
GEMMA = replace(
    PLAIN,
    architecture="gemma3",
    context_length=131072,
    block_count=12,
    key_length=256,
    sliding_window=1024,
    freq_base=1e6,
    scaling_type="linear",
    factor=8.0,
)
YARN = replace(PLAIN, context_length=32768, scaling_type="yarn", factor=4.0, original_context=8192)
KIMI = replace(
    PLAIN,
    architecture="deepseek2",
    context_length=131072,
    key_length=576,
    kv_lora_rank=512,
    dimension_count=64,
    freq_base=50000.0,
    scaling_type="yarn",
    factor=32.0,
    original_context=4096,
    yarn_log_multiplier=0.1,
)
MINISTRAL = replace(
    PLAIN,
    architecture="mistral3",
    context_length=262144,
    freq_base=1e6,
    scaling_type="yarn",
    factor=16.0,
    original_context=16384,
    yarn_log_multiplier=1.0,
)


def tensor(name: str, last: float, length: int = 64) -> FactorTensor:
    stored = np.geomspace(1, last, length).astype(np.float32)
    values = tuple(stored.astype(np.float64).tolist())
    return FactorTensor(name=f"{name}.weight", length=length, values=values)


LLAMA31 = replace(PLAIN, context_length=131072, factor_tensors=(tensor("rope_freqs", 8.0),))
PHI = replace(
    PLAIN,
    architecture="phi3",
    context_length=131072,
    original_context=4096,
    scaling_type="longrope",
    attn_factor=1.19,
    factor_tensors=(tensor("rope_factors_long", 64.0), tensor("rope_factors_short", 1.2)),
)


def request(scaling: str = "yarn", **fields: Any) -> ScalingRequest:
    return ScalingRequest(scaling=scaling, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "wanted", "keys"),
    [
        (PLAIN, request(target_context=32768), {"factor": 4.0, "original_context": 8192}),
        (GEMMA, request("linear", target_context=262144), {"factor": 16.0}),
        (GEMMA, request("linear", original_context=16384, factor=16), {"factor": 16.0}),
        (GEMMA, request("linear", original_context=131072, factor=2), {"factor": 16.0}),
        (GEMMA, request("linear", original_context=131072, target_context=262144), {"factor": 16}),
        (GEMMA, request("ntk", factor=2), {"factor": 8.0, "scaling_type": "linear"}),
        (GEMMA, request("none", target_context=262144), {"factor": 8.0}),
        (YARN, request(target_context=65536), {"factor": 8.0, "original_context": 8192}),
        (YARN, request(original_context=32768, target_context=65536), {"factor": 8.0}),
        (YARN, request(original_context=8192, factor=8), {"factor": 8.0, "context_length": 65536}),
        (YARN, request(target_context=65536, attn_factor=1.2), {"attn_factor": 0.993419}),
        (replace(YARN, attn_factor=0.7), request(factor=8), {"factor": 8.0, "attn_factor": 0.7}),
        (KIMI, request(target_context=262144), {"factor": 64.0, "attn_factor": None}),
        (KIMI, request("ntk", target_context=262144), None),
        (MINISTRAL, request(target_context=524288), {"factor": 32.0, "attn_factor": None}),
        (LLAMA31, request(target_context=262144), {"factor": 2.0, "original_context": 131072}),
        (LLAMA31, request("linear", target_context=262144), {"factor": 2.0}),
        (LLAMA31, request("none", target_context=262144), {"context_length": 262144}),
        (PHI, request("linear", target_context=262144), {"factor": 2.0, "attn_factor": 1.19}),
        (PHI, request(target_context=262144), {"scaling_type": "longrope"}),
    ],
)
def test_what_is_written_starts_from_what_the_file_has(
    file: RopeMetadata, wanted: ScalingRequest, keys: dict[str, Any] | None
) -> None:
    if keys is None:
        assert refusal(wanted, file) is not None
        return
    target, expression = encode_request(wanted, file)
    after = patched(file, expression)
    check_start(wanted, target, file, after)
    for field, value in keys.items():
        number = isinstance(value, int | float)
        assert getattr(after, field) == (pytest.approx(value, rel=1e-5) if number else value), field


@pytest.mark.parametrize(
    ("file", "wanted", "reason"),
    [
        (GEMMA, request(target_context=262144), "Ask for linear or ntk with `target_context` 262"),
        (
            GEMMA,
            request(original_context=16384, target_context=262144),
            "`original_context` 16384 is not where a scaling of this file starts",
        ),
        (GEMMA, request("none"), "goes on top of the scaling that the file has (linear 8)"),
        (GEMMA, request("linear", original_context=8192, factor=64), "`original_context` 8192"),
        (replace(YARN, architecture="qwen2", head_count=16), request("linear", factor=2), "yarn"),
        (replace(YARN, architecture="qwen2", head_count=16), request("ntk", factor=2), "yarn"),
        (YARN, request(target_context=65536, beta_fast=8), "the file's own YaRN has 32"),
        (KIMI, request(target_context=262144, attn_factor=1.3), "`attn_factor` 1.3 also changes"),
        (KIMI, request("none"), "changes nothing"),
        (LLAMA31, request("factors", factor=2, long_factors=(1.0,) * 64), "times as fast"),
        (
            PHI,
            request("longrope", factor=2, long_factors=(99.0,) * 64, attn_factor=1.2),
            "times as fast",
        ),
        (
            replace(LLAMA31, original_context=8192),
            request("linear", original_context=8192, target_context=262144),
            "reaches 131072 tokens (llama.context_length, which rope_freqs.weight reaches)",
        ),
    ],
)
def test_refused_with_what_to_ask_for_instead(
    file: RopeMetadata, wanted: ScalingRequest, reason: str
) -> None:
    found = refusal(wanted, file)
    assert found is not None
    assert reason in found
    assert "`replace_scaling`" in found
    wanted = replace(wanted, replace_scaling=True, target_context=wanted.target_context or 262144)
    if wanted.factor is not None:
        wanted = replace(wanted, target_context=None)
    assert refusal(wanted, file) is None


@pytest.mark.parametrize(
    ("file", "wanted", "reason"),
    [
        (YARN, request(target_context=16384), "below the 32768 tokens that the file reaches"),
        (GEMMA, request("linear", factor=2), "the file has 8 there already"),
        (YARN, request(factor=2), "which reaches 32768 tokens"),
        (YARN, request("none", target_context=16384), "below the 32768 tokens"),
    ],
)
def test_nothing_within_the_trained_context_is_sped_up(
    file: RopeMetadata, wanted: ScalingRequest, reason: str
) -> None:
    found = refusal(wanted, file)
    assert found is not None
    assert reason in found


def slowest(file: RopeMetadata, context_tokens: int) -> float:
    group = next(g for g in effective(file, context_tokens=context_tokens).groups)
    assert isinstance(group, LayerGroup)
    return float(group.inverse_frequencies[-1])


def test_a_raised_linear_factor_slows_the_global_layers_alone() -> None:
    wanted = request("linear", target_context=262144)
    target, expression = encode_request(wanted, GEMMA)
    after = patched(GEMMA, expression)
    assert (after.factor, after.context_length) == (16.0, 262144)
    old, new = effective(GEMMA), effective(after)
    by_name = {group.name: group for group in new.groups}
    assert len(by_name) == 2
    for group in old.groups:
        factor = 2.0 if group.name == "global" else 1.0
        np.testing.assert_allclose(
            np.multiply(by_name[group.name].inverse_frequencies, factor), group.inverse_frequencies
        )
    check_start(wanted, target, GEMMA, after)


UNSCALED_MLA = replace(
    KIMI, scaling_type=None, factor=None, original_context=None, yarn_log_multiplier=None
)


def test_yarn_scales_the_whole_scores_of_mla_once() -> None:
    after = patched(UNSCALED_MLA, encode_request(request(factor=4), UNSCALED_MLA)[1])
    (group,) = effective(after).groups
    assert group.magnitude == pytest.approx(1)
    assert group.attention_scale == pytest.approx((1 + 0.1 * math.log(4)) ** 2)
    assert after.yarn_log_multiplier == pytest.approx(0.1)
    assert after.attn_factor is None


@pytest.mark.parametrize("file", [UNSCALED_MLA, replace(UNSCALED_MLA, architecture="glm-dsa")])
def test_no_other_scheme_moves_the_scores_of_mla(file: RopeMetadata) -> None:
    before = effective(file).groups[0].attention_scale
    for wanted in (request("ntk", factor=4), request("none", target_context=262144)):
        after = patched(file, encode_request(wanted, file)[1])
        assert effective(after).groups[0].attention_scale == before == 1
    for wanted in (request("linear", factor=4), request(factor=4, attn_factor=1.5)):
        found = refusal(wanted, file)
        assert found is not None
        assert "also multiplies the attention scores" in found
        assert refusal(replace(wanted, replace_scaling=True), file) is None


def test_a_file_without_a_layer_that_has_attention_is_planned_all_the_same() -> None:
    file = replace(UNSCALED_MLA, nextn_predict_layers=1 << 27)
    assert effective(file).groups == ()
    assert refusal(request(factor=4), file) is None


def test_the_attention_temperature_keeps_its_floor() -> None:
    file = replace(PLAIN, architecture="mistral3", temperature_scale=0.1)
    assert len(SCHEMES_THAT_KEEP_IT) == 4
    for wanted in SCHEMES_THAT_KEEP_IT:
        after = patched(file, encode_request(wanted, file)[1])
        assert after.context_length == 32768
        assert effective(after).groups[0].temperature == effective(file).groups[0].temperature


SCHEMES_THAT_KEEP_IT = [request(name, target_context=32768) for name in ("ntk", "linear")] + [
    request(target_context=32768),
    request(target_context=32768, keep_short_context=True),
]


def test_raising_the_factor_of_mla_writes_no_attention_factor() -> None:
    _, expression = encode_request(request(target_context=262144, attn_factor=1.0), KIMI)
    after = patched(KIMI, expression)
    assert (after.factor, after.attn_factor, after.yarn_log_multiplier) == (64.0, None, 0.1)


def test_keeping_the_short_context_of_phi_keeps_it_bit_for_bit() -> None:
    wanted = request(target_context=262144, original_context=131072, keep_short_context=True)
    after = patched(PHI, encode_request(wanted, PHI)[1])
    assert after.original_context == 4096
    assert slowest(after, 4096) == slowest(PHI, 4096)
    assert slowest(after, 8192) == pytest.approx(slowest(PHI, 8192) / 2)
    assert effective(after).groups[0].magnitude == effective(PHI).groups[0].magnitude


@pytest.mark.parametrize(
    ("file", "words", "tokens", "original"),
    [
        (PLAIN, None, 8192, 8192),
        (GEMMA, "linear 8", 131072, 16384),
        (
            replace(GEMMA, scaling_type=None, factor=None, scale_linear=8.0),
            "linear 8",
            131072,
            16384,
        ),
        (replace(GEMMA, scaling_type="none"), None, 131072, 131072),
        (YARN, "YaRN 4 over 8192", 32768, 8192),
        (replace(YARN, context_length=16384), "YaRN 4 over 8192", 32768, 8192),
        (replace(YARN, context_length=131072), "YaRN 4 over 8192", 32768, 8192),
        (KIMI, "YaRN 32 over 4096, yarn_log_multiplier 0.1", 131072, 4096),
        (LLAMA31, "rope_freqs", 131072, 131072),
        (PHI, "rope_factors_long, rope_factors_short, attn_factor 1.19", 131072, 131072),
        (replace(PLAIN, factor=0.0, attn_factor=1.0), None, 8192, 8192),
        (replace(PLAIN, factor=math.nan), None, 8192, 8192),
        (replace(PLAIN, factor=-2.0), None, 8192, 8192),
        (replace(PLAIN, factor=1e300), "linear 1e+300", 8192, 1),
    ],
)
def test_how_a_file_is_scaled_in_words(
    file: RopeMetadata, words: str | None, tokens: int, original: int
) -> None:
    assert declared_scaling(file) == words
    trained = trained_context(file)
    assert trained is not None
    assert (trained.tokens, trained.original) == (tokens, original)
    assert trained.source


@pytest.mark.parametrize("factor", [math.nan, math.inf, -1.0, 0.0, 1e-320, 1e300])
@pytest.mark.parametrize("scaling_type", ["linear", "yarn"])
def test_absurd_factors_of_a_file_end_in_a_sentence_or_a_plan(
    factor: float, scaling_type: str
) -> None:
    for original in (None, 0, 1, 2**32 - 1):
        file = replace(PLAIN, factor=factor, scaling_type=scaling_type, original_context=original)
        for wanted in (request(target_context=16384), request("none"), request("ntk", factor=2)):
            found = refusal(wanted, file)
            assert found is None or found


def test_replace_scaling_lets_patch_replace_it(tmp_path: Path) -> None:
    keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    path = build("llama", tmp_path / "m.gguf", context=2048, keys=keys)[0]
    wanted = request(original_context=512, target_context=4096)
    with pytest.raises(RequestError, match=r"already \(linear 4\) and reaches 2048 tokens"):
        plan_patch(path, wanted)
    plan = plan_patch(path, replace(wanted, replace_scaling=True))
    assert {edit.key for edit in plan.edits} >= {"llama.rope.scaling.type"}


FACTORS = tuple(1.0 + index / 8 for index in range(64))
LLAMA3 = replace(
    PLAIN,
    context_length=131072,
    factor_tensors=(FactorTensor(name=ROPE_FREQS, length=64, values=FACTORS),),
)
PHI = replace(
    PLAIN,
    architecture="phi3",
    context_length=131072,
    original_context=4096,
    attn_factor=1.19,
    factor_tensors=tuple(
        FactorTensor(name=name, length=64, values=FACTORS)
        for name in (ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT)
    ),
)


@pytest.mark.parametrize("file", [LLAMA3, PHI])
@pytest.mark.parametrize("scheme", ["none", "yarn", "linear"])
def test_replaced_factors_are_gone(file: RopeMetadata, scheme: Any) -> None:
    wanted = request(scheme, factor=None if scheme == "none" else 2.0, replace_scaling=True)
    target, expression = encode_request(wanted, file)
    after = patched(file, expression)
    assert after.factor_tensors == ()
    assert set(expression.tensors.values()) == {None}
    plain = replace(PLAIN, architecture=file.architecture, context_length=target.original_context)
    alone = patched(plain, encode_request(replace(wanted, replace_scaling=False), plain)[1])
    n = target.context_length
    ours, theirs = (effective(each, context_tokens=n).groups[0] for each in (after, alone))
    assert np.allclose(ours.inverse_frequencies, theirs.inverse_frequencies, rtol=1e-6)
    assert ours.magnitude == pytest.approx(theirs.magnitude)
    again = patched(after, encode_request(request(target_context=4 * n), after)[1])
    slowed = effective(again, context_tokens=4 * n).groups[0].inverse_frequencies
    assert slowed[-1] < ours.inverse_frequencies[-1]


def test_a_replaced_longrope_starts_from_its_original_context() -> None:
    wanted = request(target_context=8192, replace_scaling=True)
    scaling = encode_request(wanted, PHI)[0].scaling
    assert (scaling.factor, scaling.original_context) == (2.0, 4096)  # type: ignore[union-attr]


def test_replacing_a_scaling_leaves_pairs_that_do_not_turn() -> None:
    still = tuple(1.0 if index < 16 else 1e30 for index in range(64))
    tensor = FactorTensor(name=ROPE_FREQS, length=64, values=still)
    file = replace(LLAMA3, factor_tensors=(tensor,))
    after = patched(file, encode_request(request(factor=2, replace_scaling=True), file)[1])
    assert after.factor_tensors == (tensor,)


@pytest.mark.parametrize("scaling", [None, {"rope_type": "yarn", "factor": 4.0}])
@pytest.mark.parametrize("file", [LLAMA3, PHI])
def test_a_config_says_the_whole_scaling(
    file: RopeMetadata, scaling: dict[str, Any] | None, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"max_position_embeddings": 131072, "rope_scaling": scaling}))
    after = patched(file, encode_request(request("file", from_config=str(config)), file)[1])
    assert after.factor_tensors == ()
    assert after.attn_factor is None


def test_a_config_repairs_a_scaled_file(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "max_position_embeddings": 131072,
                "rope_theta": 1e6,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            }
        )
    )
    wrong = replace(GEMMA, factor=16.0)
    assert refusal(request("file", from_config=str(config)), wrong) is None


def test_the_softmax_scale_of_a_config_is_not_dropped(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    scaling = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
    scaling |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    config.write_text(json.dumps({"max_position_embeddings": 131072, "rope_scaling": scaling}))
    wanted = request("file", from_config=str(config))
    unscaled: dict[str, Any] = {"scaling_type": None, "factor": None, "original_context": None}
    for without in (
        replace(KIMI, yarn_log_multiplier=None),
        replace(KIMI, yarn_log_multiplier=0.2),
        replace(KIMI, yarn_log_multiplier=None, **unscaled),
    ):
        assert refusal(wanted, without) is None
        keys = encode_request(wanted, without)[1].keys
        multiplier = keys["deepseek2.rope.scaling.yarn_log_multiplier"]
        assert multiplier is not None
        assert multiplier.value == pytest.approx(0.1)
        assert keys.get("deepseek2.rope.scaling.attn_factor") is None
    assert refusal(wanted, KIMI) is None
    assert refusal(wanted, replace(KIMI, **unscaled)) is None


def test_a_record_that_we_would_not_write_is_not_read(tmp_path: Path) -> None:
    base = "ggufrope.rope.trained_freq_base"
    records: list[dict[str, Any]] = [
        {TRAINED_CONTEXT: 0},
        {TRAINED_CONTEXT: "512"},
        {TRAINED_CONTEXT: 512.5},
        {base: 500000.0},
    ]
    for number, record in enumerate(records):
        path = build("llama", tmp_path / f"{number}.gguf", keys=record)[0]
        assert read_model(path).metadata.trained is None
    path = build("llama", tmp_path / "m.gguf", keys={TRAINED_CONTEXT: 512, base: "x"})[0]
    trained = read_model(path).metadata.trained
    assert trained is not None
    assert (trained.context_length, trained.freq_base) == (512, None)


def test_a_config_on_a_patched_file_leaves_the_base_it_was_trained_with(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    scaling = {"rope_type": "linear", "factor": 8.0}
    config.write_text(json.dumps({"max_position_embeddings": 131072, "rope_scaling": scaling}))
    file = replace(GEMMA, factor=None, scaling_type=None)
    once = patched(file, encode_request(request("ntk", target_context=262144), file)[1])
    assert once.freq_base != file.freq_base
    assert once.trained is not None
    mended = patched(once, encode_request(request("file", from_config=str(config)), once)[1])
    assert mended.trained is None
    assert (mended.freq_base, mended.factor) == (file.freq_base, 8.0)
