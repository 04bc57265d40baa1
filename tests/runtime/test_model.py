"""Models in the real runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ggufrope.errors import LoadError, WishError
from ggufrope.runtime import Model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def model(smollm2: Path):
    with Model.open(smollm2) as opened:
        yield opened


def test_what_it_is(model: Model) -> None:
    assert (model.architecture, model.n_layer, model.n_embd) == ("llama", 30, 576)
    assert (model.n_head, model.n_head_kv, model.head_size) == (9, 3, 64)
    assert (model.n_vocab, model.n_ctx_train, model.n_swa) == (49152, 8192, 0)
    assert not model.recurrent
    assert model.metadata("llama.rope.freq_base") == "100000.000000"
    assert model.metadata("llama.no.such.key") is None
    assert model.reported["n_rot"] == "64"
    assert "Q4_1" in model.description


def test_weights_are_placed_somewhere(model: Model) -> None:
    placement = model.placement
    assert 0 <= placement.layers_on_gpu <= placement.layers == 31
    assert sum(buffer.size_bytes for buffer in placement.buffers) == pytest.approx(
        model.size_bytes, rel=0.01
    )


@pytest.mark.parametrize(
    "text", ["", "Hello, world!\n", "  two  spaces", "naïve 東京 🦊", "<|im_end|>"]
)
def test_text_survives_the_tokenizer(model: Model, text: str) -> None:
    assert model.detokenize(model.tokenize(text)) == text


def test_special_words_in_text_stay_text(model: Model) -> None:
    assert len(model.tokenize("<|im_end|>")) > 1


def test_overrides_take_effect_and_change_no_file(smollm2: Path) -> None:
    overrides = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    with Model.open(smollm2, kv_overrides=overrides) as model:
        assert model.reported["rope scaling"] == "yarn"
        assert float(model.reported["freq_scale_train"]) == 0.25


def test_an_override_llama_cpp_would_ignore_is_refused(smollm2: Path) -> None:
    with pytest.raises(WishError, match=r"rope.freq_base=1: .*wants type float"):
        Model.open(smollm2, kv_overrides={"llama.rope.freq_base": 1})


def test_a_scaling_type_that_aborts_is_refused(smollm2: Path) -> None:
    with pytest.raises(WishError, match="aborts"):
        Model.open(smollm2, kv_overrides={"llama.rope.scaling.type": "su"})


def test_an_override_too_long_is_refused(smollm2: Path) -> None:
    with pytest.raises(WishError, match="127 bytes"):
        Model.open(smollm2, kv_overrides={"general.name": "x" * 128})


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"GGML", "invalid magic"), (b"GGUF\x03\0\0\0", "failed to read")],
)
def test_what_cannot_be_loaded_says_why(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "bad.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadError, match=message):
        Model.open(path)


def test_a_folder_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="not a file"):
        Model.open(tmp_path)


def test_a_closed_model_says_so(smollm2: Path) -> None:
    model = Model.open(smollm2)
    model.close()
    model.close()
    with pytest.raises(LoadError, match="closed"):
        model.n_layer  # noqa: B018
