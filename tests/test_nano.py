"""The whole effect, on a model trained at 256 tokens: collapse in longer contexts, and its cure.

Files are written by `patch` and read by llama.cpp. The same is then measured with context
parameters and nothing written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from ggufrope.container.reader import read_header
from ggufrope.container.store import execute, plan_store
from ggufrope.container.types import Edits, TypedValue, ValueType
from ggufrope.container.writer import plan_rewrite
from ggufrope.evals import needle
from ggufrope.evals.needle import NeedleScore, recall
from ggufrope.evals.needle_prompts import NeedlePlan
from ggufrope.patching.inspection import read_model
from ggufrope.patching.plan import apply, plan_patch
from ggufrope.patching.request import ScalingRequest, resolve
from ggufrope.patching.rotation import exact_overrides
from ggufrope.rope.effective import RopeOverrides
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings

pytestmark = pytest.mark.llama

TRAINED, FAR = 256, 2048
METHODS = ("none", "linear", "ntk", "yarn")
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def loaded(nano: Path) -> Iterator[Model]:
    with Model.open(nano, gpu_layers=0) as model:
        yield model


def ask(
    model: Model, length: int, seed: int, rope: RopeOverrides | None = None
) -> list[NeedleScore]:
    """Measure eleven depths at one length."""
    plan = NeedlePlan(
        lengths=(length,), depths=tuple(10.0 * i for i in range(11)), haystack="noise", seed=seed
    )

    def open_context(n_ctx: int) -> Context:
        return Context(model, ContextSettings(n_ctx=n_ctx, rope=rope or RopeOverrides()))

    return list(needle.ask(plan, model, open_context))


def wish(method: str, length: int) -> ScalingRequest:
    target = None if method == "none" else length
    return ScalingRequest(scaling=method, target_context=target)  # type: ignore[arg-type]


Results = tuple[NeedleScore, ...]
Written = Callable[[str, int], Results]


@pytest.fixture(scope="module")
def written(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The results of files written by `patch`, by (method, length), once for the module."""
    folder = tmp_path_factory.mktemp("nano")

    @cache
    def results(method: str, length: int) -> Results:
        path = nano
        if method != "none" and length > TRAINED:
            path = folder / f"{method}-{length}.gguf"
            apply(plan_patch(nano, wish(method, length), output=path))
        with Model.open(path, gpu_layers=0) as model:
            return tuple(result for seed in SEEDS for result in ask(model, length, seed))

    return results


def recalled(results: Results) -> float:
    assert len({result.point.context_tokens for result in results}) == 1
    found = recall(results)
    assert found.exact.value is not None
    assert found.exact.n == 11 * len(SEEDS)
    return found.exact.value


@pytest.mark.parametrize("method", METHODS)
def test_every_method_recalls_at_the_trained_length(written: Written, method: str) -> None:
    assert recalled(written(method, TRAINED)) >= 0.97


def test_collapse_and_its_cure_at_eight_times_the_length(written: Written) -> None:
    found = {method: recalled(written(method, FAR)) for method in METHODS}
    assert found["none"] <= 0.2, found
    assert found["linear"] < found["ntk"] < found["yarn"], found
    assert found["yarn"] >= 0.8, found


@pytest.mark.parametrize("method", METHODS)
def test_context_parameters_do_the_same_with_nothing_written(
    written: Written, nano: Path, loaded: Model, method: str
) -> None:
    metadata = read_model(nano).metadata
    target = resolve(wish(method, FAR), metadata)
    overrides = exact_overrides(target, metadata, context_tokens=FAR)
    assert overrides is not None
    tried = [result for seed in SEEDS for result in ask(loaded, FAR, seed, overrides)]
    assert len(tried) == 11 * len(SEEDS)
    for one, other in zip(tried, written(method, FAR), strict=True):
        assert one.point == other.point
        assert one.question.answer == other.question.answer
        assert one.exact == other.exact
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-3)


def logits(path: Path, tokens: list[int], *, n_ctx: int) -> np.ndarray:
    with (
        Model.open(path, gpu_layers=0) as model,
        Context(model, ContextSettings(n_ctx=n_ctx, n_threads=1)) as context,
    ):
        return np.concatenate([batch.copy() for batch in context.logits(tokens)])


@pytest.fixture(scope="module")
def tokens(loaded: Model) -> list[int]:
    text = " The secret number of the amber badger is 4829371. The river runs down to the sea." * 40
    return loaded.tokenize(text, beginning=True)[:700]


def patched(nano: Path, folder: Path, name: str, wished: ScalingRequest) -> Path:
    path = folder / f"{name}.gguf"
    apply(plan_patch(nano, wished, output=path))
    return path


def test_baked_yarn_gives_the_logits_of_declared_yarn(
    nano: Path, tmp_path: Path, tokens: list[int]
) -> None:
    declared = patched(
        nano, tmp_path, "declared", ScalingRequest(scaling="yarn", target_context=FAR)
    )
    baked = patched(
        nano, tmp_path, "baked", ScalingRequest(scaling="yarn", target_context=FAR, bake=True)
    )
    one, other = (logits(path, tokens, n_ctx=FAR) for path in (declared, baked))
    np.testing.assert_allclose(one, other, atol=0.1)  # the cache rounds rotated keys to f16
    assert np.abs(one - logits(nano, tokens, n_ctx=FAR)).max() > 5


def test_an_ignored_key_changes_nothing_and_a_baked_one_does(
    nano: Path, tmp_path: Path, tokens: list[int]
) -> None:
    yarn = ScalingRequest(scaling="yarn", target_context=FAR)
    declared = patched(nano, tmp_path, "declared", yarn)
    dead = tmp_path / "dead.gguf"
    edits = Edits(
        set={"llama.rope.scaling.yarn_beta_fast": TypedValue(type=ValueType.FLOAT32, value=4.0)}
    )
    execute(plan_store(declared, plan_rewrite(read_header(declared), edits), output=dead))
    steep = ScalingRequest(scaling="yarn", target_context=FAR, beta_fast=4, bake=True)
    baked = patched(nano, tmp_path, "baked", steep)
    plain = logits(declared, tokens, n_ctx=FAR)
    np.testing.assert_array_equal(plain, logits(dead, tokens, n_ctx=FAR))
    assert np.abs(plain - logits(baked, tokens, n_ctx=FAR)).max() > 0.1


def test_a_model_that_keeps_short_context_is_unchanged_up_to_its_original_context(
    nano: Path, tmp_path: Path, tokens: list[int]
) -> None:
    two = ScalingRequest(scaling="yarn", target_context=FAR, keep_short_context=True)
    path = patched(nano, tmp_path, "two", two)
    short = tokens[:TRAINED]
    np.testing.assert_array_equal(
        logits(nano, short, n_ctx=TRAINED), logits(path, short, n_ctx=TRAINED)
    )
    long = logits(path, tokens, n_ctx=FAR)
    assert np.abs(long - logits(nano, tokens, n_ctx=FAR)).max() > 1
