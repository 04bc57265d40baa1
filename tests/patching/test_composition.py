"""Every scheme on every state of a file: the prediction of the result is what `states` computes, or
the request is refused with what to ask instead."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufrope.errors import RequestError
from ggufrope.patching.compose import check_start, encode_request, patched, refusal
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.metadata import RopeMetadata
from ggufrope.rope.trained import trained_context
from tests.patching.states import SCHEMES, STATES, expected, request, state, threshold, whole
from tests.patching.states import trained_tokens as tokens_of

CASES = [(arch, name, scheme) for arch, name in STATES for scheme in SCHEMES]


def result(file: RopeMetadata, scheme: str, growth: int = 4) -> RopeMetadata:
    wanted = request(scheme, file, growth)
    target, expression = encode_request(wanted, file)
    after = patched(file, expression)
    check_start(wanted, target, file, after)
    return after


@settings(max_examples=500, deadline=None)
@given(case=st.sampled_from(CASES), growth=st.integers(2, 16), share=st.floats(0.01, 1))
def test_the_result_is_the_scheme_on_the_rotation_of_the_file(
    case: tuple[str, str, str], growth: int, share: float
) -> None:
    architecture, name, scheme = case
    file = state(architecture, name)
    refused = refusal(request(scheme, file, growth), file)
    if refused is not None:
        assert "`" in refused or "llama.cpp loads no" in refused
        return
    after = result(file, scheme, growth)
    if architecture == "cohere2":
        return
    target = growth * tokens_of(file)
    for tokens in {max(int(share * target), 1), threshold(file), tokens_of(file), target}:
        wanted, found = expected(scheme, file, tokens, growth), whole(after, tokens)
        np.testing.assert_allclose(found.inverse_frequencies, wanted.inverse_frequencies, rtol=2e-6)
        assert found.magnitude == pytest.approx(wanted.magnitude, rel=1e-6)


def possible(architecture: str) -> set[tuple[str, str]]:
    """Return the states and schemes that are not refused."""
    return {
        (name, scheme)
        for arch, name, scheme in CASES
        if arch == architecture
        and refusal(request(scheme, state(arch, name)), state(arch, name)) is None
    }


@pytest.mark.parametrize("architecture", ["llama", "granite", "phi3", "mistral3"])
def test_with_long_and_short_factors_everything_composes(architecture: str) -> None:
    every = {(name, scheme) for arch, name, scheme in CASES if arch == architecture}
    assert len(every) >= 100
    assert possible(architecture) == every


def test_without_factors_what_no_key_says_is_refused_with_what_to_ask_instead() -> None:
    found = possible("qwen2")
    for scheme in ("none", "linear", "ntk", "dynamic-ntk"):
        assert ("linear", scheme) in found
    assert {scheme for name, scheme in found if name == "yarn"} == {"none", "yarn"}
    for name, scheme in (("linear", "yarn"), ("yarn", "linear"), ("yarn", "ntk")):
        said = refusal(request(scheme, state("qwen2", name)), state("qwen2", name))
        assert said is not None
        assert f"Ask for {name}" in said
        assert "`replace_scaling`" in said


@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen2", "mistral3", "deepseek2"])
@pytest.mark.parametrize("first", ["ntk", "yarn", "linear", "yarn, baked", "yarn, short kept"])
@pytest.mark.parametrize("second", ["ntk", "yarn", "linear", "none", "llama3"])
def test_a_second_patch_starts_from_what_the_model_was_trained_with(
    architecture: str, first: str, second: str
) -> None:
    count = 0
    for arch, name in STATES:
        if arch != architecture:
            continue
        file = state(arch, name)
        try:
            once = result(file, first, 2)
            at_once = result(file, second, 8)
        except RequestError:
            continue
        count += 1
        assert once.trained is not None
        trained = trained_context(once)
        assert trained is not None
        assert trained.tokens == tokens_of(file)
        wanted = replace(request(second, file, 8))
        target, expression = encode_request(wanted, once)
        twice = patched(once, expression)
        check_start(wanted, target, once, twice)
        assert twice.trained == once.trained
        for tokens in (256, 8 * tokens_of(file)):
            for one, other in zip(
                effective(twice, context_tokens=tokens).groups,
                effective(at_once, context_tokens=tokens).groups,
                strict=True,
            ):
                assert one == other
    assert count or architecture in ("qwen2", "deepseek2")


def test_where_only_windows_rotate_the_attention_factor_is_theirs() -> None:
    file = state("cohere2", "none with a factor")
    wanted = request("yarn", file)
    _, expression = encode_request(wanted, file)
    assert "only sliding-window layers rotate: a window needs no extension" in expression.notes
    before, after = (effective(each).groups[0] for each in (file, patched(file, expression)))
    assert after.magnitude == pytest.approx(before.magnitude * (1 + 0.1 * math.log(4)))
