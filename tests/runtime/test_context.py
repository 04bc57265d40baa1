"""Contexts in the real runtime, on SmolLM2."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from fixtures.make import build
from ggufrope.errors import BackendError, DecodeError, RequestError, UnsupportedCacheError
from ggufrope.lm import Branch
from ggufrope.rope.effective import RopeOverrides
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings

pytestmark = pytest.mark.llama

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "The capital of France is Paris. The capital of Italy is Rome. " * 3
QUESTION = "The capital of France is"
# One thread: two would wait for each other on a busy machine longer than they compute.
F32 = ContextSettings(n_ctx=256, type_k="f32", type_v="f32", n_threads=1)


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Iterator[Model]:
    with Model.open(smollm2) as opened:
        yield opened


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    with Context(model, F32) as opened:
        yield opened


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    probabilities: NDArray[np.float64] = np.exp(shifted)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return np.log(probabilities)


def answers(model: Model, *texts: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(model.tokenize(text)) for text in texts)


def test_the_trunk_grows_and_rewinds(context: Context, model: Model) -> None:
    tokens = model.tokenize(TEXT, beginning=True)
    seen: list[int] = []
    context.extend(tokens, progress=seen.append)
    assert context.position == sum(seen) == len(tokens)
    context.rewind(5)
    assert context.position == 5
    context.extend(tokens[5:])
    assert context.position == len(tokens)


def test_scores_are_those_of_plain_logits(context: Context, model: Model) -> None:
    """Branches evaluated together have the scores that each has alone, as part of the trunk."""
    trunk, prompt = model.tokenize(TEXT, beginning=True), model.tokenize(QUESTION)
    candidates = answers(model, " Paris.", " Rome, not Paris")
    context.extend(trunk)
    branch = Branch(prompt=tuple(prompt), answers=candidates)
    scored = context.score([branch] * 9)
    assert context.position == len(trunk)
    for candidate, score in zip(candidates, scored[7], strict=True):
        context.rewind(0)
        rows = np.concatenate(list(context.logits([*trunk, *prompt, *candidate])))
        rows = rows[-len(candidate) - 1 : -1]
        expected = log_softmax(rows)[np.arange(len(candidate)), candidate]
        # Products with 4-bit weights round differently in a batch of another shape.
        assert score.log_probabilities == pytest.approx(expected, abs=0.4)
        assert score.greedy == (rows.argmax(axis=1) == candidate).all()
    assert scored[0][0].greedy
    assert not scored[0][1].greedy


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "cohere2"])
def test_branches_in_many_groups_and_batches_score_as_each_alone(
    architecture: str, tmp_path: Path
) -> None:
    """Full-precision weights, windows shorter than the trunk, batches that cut shared prompts."""
    random = np.random.default_rng(3)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(random.integers(256, size=count).tolist())

    trunk, alike = draw(60), draw(20)
    branches = [
        Branch(
            prompt=alike[: n % 21] + draw(1 + n % 9),
            answers=tuple(alike[: n % 3] + draw(1 + i) for i in range(n % 4)),
        )
        for n in range(60)
    ]
    settings = ContextSettings(n_ctx=256, type_k="f32", type_v="f32", n_batch=32, n_ubatch=16)
    (path,) = build(architecture, tmp_path / "tiny.gguf")
    with Model.open(path) as model, Context(model, settings) as context:
        context.extend(trunk)
        scored = context.score(branches)
        assert context.position == 60
        assert [len(scores) for scores in scored] == [n % 4 for n in range(60)]
        for branch, scores in zip(branches, scored, strict=True):
            for answer, score in zip(branch.answers, scores, strict=True):
                context.rewind(60)
                batches = [rows.copy() for rows in context.logits([*branch.prompt, *answer])]
                rows = np.concatenate(batches)[-len(answer) - 1 : -1]
                expected = log_softmax(rows)[np.arange(len(answer)), answer]
                assert score.log_probabilities == pytest.approx(expected, abs=1e-3)
                assert score.greedy == (rows.argmax(axis=1) == answer).all()


def test_generation_agrees_with_the_scores_and_leaves_the_trunk(
    context: Context, model: Model
) -> None:
    context.extend(model.tokenize(TEXT, beginning=True))
    before = context.position
    answer = context.generate(model.tokenize(QUESTION), max_tokens=2)
    assert model.detokenize(answer) == " Paris."
    assert context.position == before
    branch = Branch(prompt=tuple(model.tokenize(QUESTION)), answers=(tuple(answer),))
    assert context.score([branch])[0][0].greedy


def test_generation_stops_where_the_context_ends(model: Model) -> None:
    with Context(model, F32) as context:
        context.extend(model.tokenize("one two three " * 100)[:250])
        prompt = model.tokenize("one two three ")[:3]
        assert len(context.generate(prompt, max_tokens=100)) <= 4


def test_tokens_that_do_not_fit_are_refused(context: Context, model: Model) -> None:
    context.extend([1] * 250)
    with pytest.raises(DecodeError, match="the context holds 256"):
        context.extend([1] * 7)
    with pytest.raises(DecodeError, match="does not fit after 250 tokens"):
        context.score([Branch(prompt=(1,) * 5, answers=((1, 1, 1),))])
    assert context.position == 250


def test_numbers_outside_the_vocabulary_are_refused(context: Context, model: Model) -> None:
    with pytest.raises(RequestError, match=f"token {model.n_vocab} is not"):
        context.extend([1, model.n_vocab])
    with pytest.raises(RequestError, match="cannot rewind to 1"):
        context.rewind(1)


def test_contexts_of_one_model_differ(model: Model) -> None:
    tokens = model.tokenize(TEXT)
    settings = ContextSettings(
        n_ctx=256, n_threads=1, rope=RopeOverrides(scaling_type="linear", freq_scale=0.5)
    )
    with Context(model, F32) as plain, Context(model, settings) as scaled:
        (a,), (b,) = plain.logits(tokens), scaled.logits(tokens)
        assert not np.allclose(a, b, atol=1.0)


@pytest.mark.parametrize(
    "settings",
    [
        ContextSettings(n_ctx=1, n_threads=1),
        ContextSettings(n_ctx=300, n_threads=1, n_batch=2, n_ubatch=1),
    ],
)
def test_the_smallest_contexts_and_batches_work(model: Model, settings: ContextSettings) -> None:
    with Context(model, settings) as context:
        context.extend([5] * 3)
        (first, second), (third,) = context.score(
            [Branch(prompt=(5, 6), answers=((7,), (8, 9))), Branch(prompt=(5,), answers=((7,),))]
        )
        assert len(second.log_probabilities) == 2
        assert first != third


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"])
def test_every_cache_type_runs(model: Model, kind: str) -> None:
    with Context(
        model, ContextSettings(n_ctx=256, n_threads=1, type_k=kind, type_v=kind)
    ) as context:
        (rows,) = context.logits(model.tokenize(QUESTION))
        assert np.isfinite(rows).all()
        assert context.cache is not None
        assert (
            context.cache.rotated_k
            is context.cache.rotated_v
            is (kind[0] != "f" and kind[0] != "b")
        )


def test_the_size_of_the_cache_follows_from_its_types(model: Model) -> None:
    from ggufrope.container.ggml import CACHE_TYPES

    settings = ContextSettings(n_ctx=1024, n_threads=1, type_k="q8_0", type_v="f16")
    with Context(model, settings) as context:
        assert context.cache is not None
        width = model.n_head_kv * model.head_size
        row = CACHE_TYPES["q8_0"].row_bytes(width) + CACHE_TYPES["f16"].row_bytes(width)
        assert context.cache.bytes_per_token == pytest.approx(row * model.n_layer, rel=1e-3)


def test_a_quantized_v_needs_flash_attention(model: Model) -> None:
    settings = ContextSettings(n_ctx=256, n_threads=1, type_v="q8_0", flash_attention=False)
    with pytest.raises(UnsupportedCacheError, match="flash attention"):
        Context(model, settings)


@pytest.mark.parametrize(
    "settings",
    [
        ContextSettings(n_ctx=0),
        ContextSettings(n_ctx=2**32),
        ContextSettings(n_ctx=256, n_batch=1),
        ContextSettings(n_ctx=256, n_ubatch=0),
        ContextSettings(n_ctx=256, n_threads=513),
    ],
)
def test_settings_out_of_range_are_refused(model: Model, settings: ContextSettings) -> None:
    with pytest.raises(RequestError, match="must be"):
        Context(model, settings)


def test_an_unknown_cache_type_is_refused(model: Model) -> None:
    with pytest.raises(UnsupportedCacheError, match="'q3_0'; known: f32"):
        Context(model, ContextSettings(n_ctx=256, n_threads=1, type_k="q3_0"))


def test_closing_the_model_closes_its_contexts(smollm2: Path) -> None:
    with Model.open(smollm2) as model:
        context = Context(model, F32)
    with pytest.raises(BackendError, match="closed"):
        context.extend([1])


def test_ctrl_c_ends_a_long_batch_and_the_context_stays_usable(model: Model) -> None:
    settings = ContextSettings(n_ctx=4096, n_batch=4096, n_ubatch=64)
    with Context(model, settings) as context:
        timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
        timer.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            context.extend([5] * 4096)
        assert time.monotonic() - started < 10
        assert context.position == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        context.extend([5] * 8)
        assert context.position == 8
