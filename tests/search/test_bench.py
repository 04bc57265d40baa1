"""The bench over llama.cpp: factors written under a loaded model act at once, as the scheme."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from ggufrope.lm import Branch, LanguageModel
from ggufrope.patching.inspection import StoredModel, read_model
from ggufrope.rope.effective import RopeOverrides
from ggufrope.rope.scaling import FrequencyFactors, RopeScaling
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings
from ggufrope.search.bench import Bench, FactorBench, OverrideBench, open_bench
from ggufrope.search.spaces import Rotation, baselines, rotation_of

TEXT = "The river runs down to the sea, and the road goes on. " * 8


class LlamaRuntime:
    """llama.cpp as a search sees it."""

    def __init__(self) -> None:
        self.loads = 0

    def load(self, path: Path, kv_overrides: Mapping[str, int | float | bool | str]) -> Model:
        self.loads += 1
        return Model.open(path, kv_overrides=kv_overrides, gpu_layers=0)

    def open_context(self, model: Model, n_ctx: int, rope: RopeOverrides) -> Context:
        return Context(model, ContextSettings(n_ctx=n_ctx, rope=rope, n_threads=1))


@pytest.fixture(scope="module")
def stored(nano: Path) -> StoredModel:
    return read_model(nano)


@pytest.fixture(scope="module")
def rotation(stored: StoredModel) -> Rotation:
    return rotation_of(stored.metadata, target_context=2048)


@pytest.fixture(scope="module")
def runtime() -> LlamaRuntime:
    return LlamaRuntime()


@pytest.fixture(scope="module")
def bench(
    stored: StoredModel,
    rotation: Rotation,
    runtime: LlamaRuntime,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[FactorBench[Model]]:
    made = open_bench(stored, rotation, runtime, tmp_path_factory.mktemp("bench"))
    assert isinstance(made, FactorBench)
    with closing(made):
        yield made


def log_probabilities(bench: Bench, scheme: RopeScaling) -> tuple[float, ...]:
    subject = bench.under(scheme)
    tokens = _tokens(subject.model)
    context = subject.open_context(256)
    context.extend(tokens[:64])
    branch = Branch(prompt=(tokens[64],), answers=(tuple(tokens[65:96]),))
    ((score,),) = context.score([branch])
    context.close()
    return score.log_probabilities


def _tokens(model: LanguageModel) -> list[int]:
    return model.tokenize(TEXT, beginning=True)


def test_a_mapped_model_sees_its_factors_change(
    bench: FactorBench[Model], runtime: LlamaRuntime, rotation: Rotation
) -> None:
    assert bench.live
    loads = runtime.loads
    first, second = (FrequencyFactors(factors=(factor,) * rotation.pairs) for factor in (1.0, 3.0))
    before = log_probabilities(bench, first)
    changed = log_probabilities(bench, second)
    assert changed != before
    assert log_probabilities(bench, first) == before
    assert runtime.loads == loads


@pytest.mark.parametrize("name", ["unscaled", "linear", "ntk", "yarn"])
def test_factors_are_the_scheme_that_context_parameters_give(
    name: str, bench: FactorBench[Model], stored: StoredModel, rotation: Rotation
) -> None:
    scheme = baselines(rotation)[name]
    with closing(OverrideBench(stored, rotation, LlamaRuntime())) as flags:
        # Frequencies that differ in their last bit are rounded apart by half-precision products.
        found = log_probabilities(bench, scheme)
        assert found == pytest.approx(log_probabilities(flags, scheme), abs=0.03)
    other = baselines(rotation)["ntk" if name == "unscaled" else "unscaled"]
    assert found != pytest.approx(log_probabilities(bench, other), abs=0.3)


def test_the_attention_factor_acts(bench: FactorBench[Model], rotation: Rotation) -> None:
    factors = (1.0,) * rotation.pairs
    found = {
        log_probabilities(bench, FrequencyFactors(factors=factors, attention_factor=magnitude))
        for magnitude in (1.0, 1.2)
    }
    assert len(found) == 2
