"""The memory that a context and the weights need, before either is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ggufrope.errors import InsufficientMemoryError
from ggufrope.runtime.context import Context
from ggufrope.runtime.loading import LoadOptions
from ggufrope.runtime.memory import context_need, free_memory, largest_context, require_fit
from ggufrope.runtime.model import Model
from ggufrope.runtime.placement import fitting_layers, require_weights_fit, weights_need
from ggufrope.runtime.settings import ContextSettings

pytestmark = pytest.mark.llama

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Iterator[Model]:
    with Model.open(smollm2) as opened:
        yield opened


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_the_need_is_what_the_context_allocates(model: Model, kind: str) -> None:
    settings = ContextSettings(n_ctx=2048, type_k=kind, type_v=kind)
    predicted = sum(buffer.size_bytes for buffer in context_need(model, settings))
    with Context(model, settings) as context:
        assert predicted == pytest.approx(sum(b.size_bytes for b in context.buffers), rel=1e-3)


def test_a_context_that_does_not_fit_is_refused_with_one_that_would(model: Model) -> None:
    settings = ContextSettings(n_ctx=8192)
    free = {"CPU": 256 * MIB}
    largest = largest_context(model, settings, free)
    assert 0 < largest < 8192
    with pytest.raises(
        InsufficientMemoryError, match=f"256.0 MiB are free; {largest} tokens would fit, or"
    ):
        require_fit(model, settings, free)
    require_fit(model, ContextSettings(n_ctx=largest), free)
    with pytest.raises(InsufficientMemoryError):
        require_fit(model, ContextSettings(n_ctx=largest + 256), free)
    require_fit(model, ContextSettings(n_ctx=8192, type_k="q4_0", type_v="q4_0"), free)


def test_the_message_says_that_no_length_would_fit(model: Model) -> None:
    with pytest.raises(InsufficientMemoryError, match="no length would fit"):
        require_fit(model, ContextSettings(n_ctx=512), {"CPU": MIB})


@pytest.mark.parametrize("n_ctx", [2**24, 2**30])
def test_a_context_beyond_any_memory_is_refused_before_it_is_made(model: Model, n_ctx: int) -> None:
    if free_memory()["CPU"] > 600 * 2**30:
        pytest.skip("this machine has the memory")
    with pytest.raises(
        InsufficientMemoryError, match=f"a context of {n_ctx} tokens .* tokens would fit"
    ):
        Context(model, ContextSettings(n_ctx=n_ctx))


def test_weights_are_counted_where_they_would_go(smollm2: Path, model: Model) -> None:
    need = weights_need(smollm2, LoadOptions(gpu_layers=0))
    assert [buffer.device for buffer in need] == ["CPU"]
    assert need[0].size_bytes == pytest.approx(model.size_bytes, rel=1e-3)
    require_weights_fit(smollm2, LoadOptions(gpu_layers=0), {"CPU": 93 * MIB})
    with pytest.raises(InsufficientMemoryError, match="set gpu_layers lower"):
        require_weights_fit(smollm2, LoadOptions(gpu_layers=0), {"CPU": 90 * MIB})


@pytest.mark.usefixtures("only_cpu")
def test_without_a_gpu_no_layers_fit(smollm2: Path) -> None:
    assert fitting_layers(smollm2, ContextSettings(n_ctx=256)) == 0
