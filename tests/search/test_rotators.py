"""One loaded model that rotates by one scheme after another, over llama.cpp."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ggufrope import LlamaBackend
from ggufrope.container.ggml import KvTypes
from ggufrope.patching.inspection import StoredModel, read_model
from ggufrope.patching.rotation import Rotation, rotation_of
from ggufrope.rope.scaling import FrequencyFactors, Linear, Unscaled, Yarn
from ggufrope.runtime.model import Model
from ggufrope.search.rotators import FactorRotator, ParameterRotator, Rotator, open_rotator
from ggufrope.search.schemes import Scheme, exact_parameters, plain_scheme
from ggufrope.search.spaces import baselines
from tests.search.standin import StandInBackend, write_model
from tests.test_backends import ONE_THREAD, TEXT, CountingBackend, log_probabilities

if TYPE_CHECKING:
    from collections.abc import Iterator

F16 = KvTypes.parse("f16")


@pytest.fixture(scope="module")
def backend() -> CountingBackend:
    return CountingBackend()


def under(rotator: Rotator, scheme: Scheme) -> tuple[float, ...]:
    rotated = rotator.rotate(scheme)
    tokens = rotated.model.tokenize(TEXT, beginning=True)
    return log_probabilities(rotated.open_context(256), tokens)


def factors(*values: float, attention: float = 1.0) -> Scheme:
    return Scheme(scaling=FrequencyFactors(factors=values, attention_factor=attention))


@pytest.fixture(scope="module")
def stored(nano: Path) -> StoredModel:
    return read_model(nano)


@pytest.fixture(scope="module")
def rotation(stored: StoredModel) -> Rotation:
    return rotation_of(stored.metadata, target_context=2048)


@pytest.fixture(scope="module")
def rotator(
    stored: StoredModel,
    rotation: Rotation,
    backend: CountingBackend,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[FactorRotator[Model]]:
    folder = tmp_path_factory.mktemp("overlay")
    made: FactorRotator[Model] | ParameterRotator[Model] = open_rotator(
        stored, rotation, backend, folder, kv=F16
    )
    assert isinstance(made, FactorRotator)
    with closing(made):
        yield made


@pytest.mark.llama
def test_a_mapped_model_sees_its_factors_change(
    rotator: FactorRotator[Model], backend: CountingBackend, rotation: Rotation
) -> None:
    assert rotator.updates_in_place
    loads = len(backend.loads)
    first, second = (factors(*(factor,) * rotation.pairs) for factor in (1.0, 3.0))
    before = under(rotator, first)
    changed = under(rotator, second)
    assert changed != before
    assert under(rotator, first) == before
    assert len(backend.loads) == loads


@pytest.mark.llama
@pytest.mark.parametrize("name", ["unscaled", "linear", "ntk", "yarn"])
def test_factors_are_the_scheme_that_context_parameters_give(
    name: str, rotator: FactorRotator[Model], stored: StoredModel, rotation: Rotation
) -> None:
    scheme = baselines(rotation)[name]
    flags = ParameterRotator(stored, LlamaBackend(settings=ONE_THREAD), kv=F16)
    with closing(flags):
        # Frequencies that differ in their last bit are rounded apart by half-precision products.
        found = under(rotator, scheme)
        assert found == pytest.approx(under(flags, scheme), abs=0.03)
    other = baselines(rotation)["ntk" if name == "unscaled" else "unscaled"]
    assert found != pytest.approx(under(rotator, other), abs=0.3)


@pytest.mark.llama
def test_the_attention_factor_acts(rotator: FactorRotator[Model], rotation: Rotation) -> None:
    ones = (1.0,) * rotation.pairs
    found = {under(rotator, factors(*ones, attention=magnitude)) for magnitude in (1.0, 1.2)}
    assert len(found) == 2


BY_PARAMETERS = {
    "base": Scheme(scaling=Unscaled(), freq_base=90_000.0),
    "base and linear": Scheme(scaling=Linear(factor=2.0), freq_base=40_000.0),
    "base and attention": Scheme(
        scaling=plain_scheme(factor=1.0, attention=1.2, original_context=256), freq_base=90_000.0
    ),
    "base, linear and attention": Scheme(
        scaling=plain_scheme(factor=3.0, attention=0.9, original_context=256), freq_base=20_000.0
    ),
    "yarn's three numbers": Scheme(
        scaling=Yarn(factor=8, original_context=256, beta_fast=9, beta_slow=2, attention_factor=1.4)
    ),
}


@pytest.mark.llama
@pytest.mark.parametrize("name", BY_PARAMETERS)
def test_a_scheme_is_the_same_in_factors_and_in_run_time_parameters(
    name: str, rotator: FactorRotator[Model], stored: StoredModel, rotation: Rotation
) -> None:
    scheme = BY_PARAMETERS[name]
    assert exact_parameters(scheme, rotation, stored.metadata) is not None
    flags = ParameterRotator(stored, LlamaBackend(settings=ONE_THREAD), kv=F16)
    with closing(flags):
        found = under(rotator, scheme)
        assert found == pytest.approx(under(flags, scheme), abs=0.05)
    assert found != pytest.approx(under(rotator, baselines(rotation)["unscaled"]), abs=0.3)


def test_where_changes_are_not_seen_parameters_spare_the_loading(tmp_path: Path) -> None:
    model = read_model(write_model(tmp_path / "model.gguf"))
    rotation = rotation_of(model.metadata, target_context=1024)
    backend = StandInBackend(mapped=False)
    with closing(open_rotator(model, rotation, backend, tmp_path, kv=F16)) as rotator:
        assert not rotator.updates_in_place
        opened = len(backend.loads)
        for name in ("yarn", "ntk", "linear"):
            rotator.rotate(baselines(rotation)[name]).open_context(256).close()
        assert len(backend.loads) == opened + 1  # the native factors, once
        assert backend.overrides[-1].scaling_type == "linear"
        rotator.rotate(factors(*range(1, rotation.pairs + 1)))
        assert len(backend.loads) == opened + 2
        rotator.rotate(factors(*range(1, rotation.pairs + 1), attention=1.1))
        assert len(backend.loads) == opened + 2  # the attention factor is a parameter
