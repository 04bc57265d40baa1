"""Experts of a mixture of experts that stay on the CPU: which tensors, and how much is left."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pytest

from ggufrope import Context, ContextSettings, Model, RuntimeSettings, open_model
from ggufrope.container.shards import open_model as stored_model
from ggufrope.runtime import library
from ggufrope.runtime.loading import Buffer, LoadOptions
from ggufrope.runtime.placement import _by_device, weights_need
from tools.random_model import SHAPES, write

SHAPE = SHAPES["tiny-experts"]
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experts") / "mixture.gguf"
    write(path, SHAPE)
    return path


def names(layers: int) -> set[str]:
    return {f"blk.{layer}.{name}.weight" for layer in range(layers) for name in EXPERTS}


@pytest.mark.llama
@pytest.mark.parametrize(("chosen", "layers"), [(0, 0), (1, 1), (2, 2), (40, 2), ("all", 2)])
def test_llama_cpp_puts_the_experts_of_the_first_layers_on_the_cpu(
    chosen: int | Literal["all"], layers: int, mixture: Path
) -> None:
    with library.capture(debug=True) as log, Model.open(mixture, experts_on_cpu=chosen) as model:
        tokens = model.tokenize("the mill")
        with Context(model, ContextSettings(n_ctx=256)) as context:
            assert sum(len(rows) for rows in context.logits(tokens)) == len(tokens)
    moved = log.search(r"^tensor (\S+) .*buffer type overridden to CPU")
    assert {line[1] for line in moved} == names(layers)


def test_layers_from_eleven_up_are_not_those_of_the_first(mixture: Path) -> None:
    first, *_ = LoadOptions(experts_on_cpu=2).expert_patterns
    assert re.search(first, "blk.0.ffn_gate_exps.weight")
    second = LoadOptions(experts_on_cpu=2).expert_patterns[1]
    assert re.search(second, "blk.1.ffn_up_chexps.weight")
    assert not re.search(second, "blk.11.ffn_gate_exps.weight")
    assert not re.search(second, "blk.1.ffn_gate_inp.weight")
    assert not re.search(second, "blk.1.ffn_gate_shexp.weight")


@pytest.mark.parametrize("chosen", [0, 1, "all"])
def test_the_need_on_a_gpu_is_less_by_the_experts(
    chosen: int | Literal["all"], mixture: Path
) -> None:
    log = library.Log(
        lines=[
            f"load_tensors: layer {layer} assigned to device GPU, is_swa = 0" for layer in range(3)
        ]
    )
    need = {b.device: b.size_bytes for b in _by_device(mixture, LoadOptions(), log)}
    less = {
        b.device: b.size_bytes for b in _by_device(mixture, LoadOptions(experts_on_cpu=chosen), log)
    }
    layers = 2 if chosen == "all" else int(chosen)
    tensors = stored_model(mixture).tensors
    moved = sum(tensor.length for tensor in tensors if tensor.name in names(layers))
    assert need["GPU"] - less["GPU"] == less["CPU"] - need["CPU"] == moved
    assert (moved > 0) == (layers > 0)


@pytest.mark.llama
def test_a_model_without_experts_stays_as_it_is(nano: Path) -> None:
    assert weights_need(nano, LoadOptions(experts_on_cpu="all")) == weights_need(
        nano, LoadOptions()
    )
    assert isinstance(weights_need(nano, LoadOptions())[0], Buffer)


@pytest.mark.llama
@pytest.mark.parametrize(
    ("chosen", "words"), [("all", "2 of 2 layers"), (1, "1 of 2 layers"), (9, "2 of 2 layers")]
)
def test_a_report_says_where_the_experts_are(
    chosen: int | Literal["all"], words: str, mixture: Path, nano: Path
) -> None:
    subjects = [
        open_model(path, RuntimeSettings(experts_on_cpu=chosen)) for path in (mixture, nano)
    ]
    try:
        said = [subject.details["experts on CPU"] for subject in subjects]
    finally:
        for subject in subjects:
            subject.close()
    assert said == [words, "the model has no experts"]
