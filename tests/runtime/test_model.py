"""Models in the real runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.abort_sweep import File, number
from fixtures.make import build
from ggufrope.container.reader import read_header
from ggufrope.errors import FileError, LoadError, MissingDependencyError, RequestError
from ggufrope.runtime.memory import cache_refusal
from ggufrope.runtime.model import Model

pytestmark = pytest.mark.llama

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Iterator[Model]:
    with Model.open(smollm2) as opened:
        yield opened


def test_properties_of_the_model(model: Model) -> None:
    assert (model.architecture, model.n_layer, model.n_embd) == ("llama", 30, 576)
    assert (model.n_head, model.n_head_kv, model.head_size) == (9, 3, 64)
    assert (model.n_vocab, model.n_ctx_train, model.n_swa) == (49152, 8192, 0)
    assert not model.has_state
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


def test_special_tokens_in_text_stay_text(model: Model) -> None:
    assert len(model.tokenize("<|im_end|>")) > 1


def test_special_tokens_are_parsed_where_they_are_wanted(model: Model) -> None:
    assert model.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert model.tokenize("<|im_end|>\n<|im_start|>", special=True) == [
        *model.tokenize("<|im_end|>", special=True),
        *model.tokenize("\n"),
        *model.tokenize("<|im_start|>", special=True),
    ]
    assert model.tokenize("plain text", special=True) == model.tokenize("plain text")


def test_a_chat_template_is_read_as_the_file_has_it(model: Model) -> None:
    assert model.chat_template == read_header(model.path).get("tokenizer.chat_template")


def test_overrides_take_effect_and_change_no_file(smollm2: Path) -> None:
    overrides: dict[str, float | str] = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
    }
    with Model.open(smollm2, kv_overrides=overrides) as model:
        assert model.reported["rope scaling"] == "yarn"
        assert float(model.reported["freq_scale_train"]) == 0.25


def test_an_override_llama_cpp_would_ignore_is_refused(smollm2: Path) -> None:
    with pytest.raises(RequestError, match=r"rope.freq_base=1: .*expects type float, found int"):
        Model.open(smollm2, kv_overrides={"llama.rope.freq_base": 1})


def test_a_scaling_type_that_aborts_is_refused(smollm2: Path) -> None:
    with pytest.raises(RequestError, match="aborts"):
        Model.open(smollm2, kv_overrides={"llama.rope.scaling.type": "su"})


def test_an_override_too_long_is_refused(smollm2: Path) -> None:
    with pytest.raises(RequestError, match=r"128 bytes \(limit: 127\)"):
        Model.open(smollm2, kv_overrides={"general.name": "x" * 128})


def test_a_file_that_is_not_a_model_does_not_reach_llama_cpp(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGML")
    for name in ("bad.gguf", "absent.gguf", "."):
        with pytest.raises(FileError, match=str(tmp_path)):
            Model.open(tmp_path / name)


def test_a_scaling_type_in_the_file_that_aborts_is_refused(tmp_path: Path) -> None:
    (path,) = build("llama", tmp_path / "tiny.gguf", keys={"rope.scaling.type": "su"})
    with pytest.raises(LoadError, match=r"'su' \(expected one of none, linear"):
        Model.open(path)
    with Model.open(path, kv_overrides={"llama.rope.scaling.type": "none"}) as model:
        assert model.reported["rope scaling"] == "none"


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("llama", {"factor_type": np.float16}, "rope_freqs.weight is of type F16"),
        ("llama", {"factor_type": np.float64}, "rope_freqs.weight is of type F64"),
        ("phi3", {"factor_type": np.float16}, "rope_factors_long.weight is of type F16"),
        ("qwen3", {"rotary": 16}, "runs only with the head size, 32"),
        ("deepseek2", {"keys": {"attention.temperature_scale": 0.1}}, "temperature_length is None"),
    ],
)
def test_what_would_end_the_process_is_refused_in_one_line(
    architecture: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    ones = np.ones(16)
    if "factor_type" in options:
        names = ("freqs",) if architecture == "llama" else ("factors_long", "factors_short")
        options["factors"] = {f"rope_{name}.weight": ones for name in names}
    (path,) = build(architecture, tmp_path / "tiny.gguf", **options)
    with pytest.raises(LoadError, match=message) as refused:
        Model.open(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("alignment", [8, 16, 64])
def test_a_file_that_cannot_be_mapped_is_read_or_refused(alignment: int, tmp_path: Path) -> None:
    """llama.cpp asserts that the first mapped tensor is at a multiple of 32 bytes."""
    for name in ("", "x", "x" * 9, "x" * 17):
        keys = {"general.note": name}
        (path,) = build("llama", tmp_path / "tiny.gguf", alignment=alignment, keys=keys)
        header = read_header(path)
        if (header.data_offset + header.tensors[0].offset) % 32:
            with pytest.raises(LoadError, match="no multiple of 32"):
                Model.open(path)
        else:
            Model.open(path).close()
        Model.open(path, use_mmap=False).close()


def test_a_refused_load_quotes_llama_cpp(tmp_path: Path) -> None:
    factors = {"rope_freqs.weight": np.ones(16, dtype=np.float32)}
    (path,) = build("qwen2", tmp_path / "tiny.gguf", factors=factors)
    with pytest.raises(LoadError, match=r"tiny.gguf: llama.cpp cannot load it: wrong number of"):
        Model.open(path)


@pytest.mark.usefixtures("only_cpu")
@pytest.mark.parametrize(
    "option", [{"gpu_layers": 3}, {"main_gpu": 0}, {"tensor_split": (1.0, 2.0)}]
)
def test_options_that_need_a_gpu_are_refused_without_one(
    smollm2: Path, option: dict[str, Any]
) -> None:
    with pytest.raises(
        MissingDependencyError, match="cannot use a GPU; `ggufrope doctor` has the command"
    ):
        Model.open(smollm2, **option)


def test_loading_reports_its_progress(smollm2: Path) -> None:
    shares: list[float] = []
    with Model.open(smollm2, progress=shares.append):
        assert shares == sorted(shares)
        assert shares[-1] == 1.0


def test_an_error_in_the_progress_callback_ends_the_load(smollm2: Path) -> None:
    def stop(_share: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Model.open(smollm2, progress=stop)


def test_a_closed_model_says_so(smollm2: Path) -> None:
    model = Model.open(smollm2)
    model.close()
    model.close()
    with pytest.raises(LoadError, match="closed"):
        model.n_layer  # noqa: B018


@pytest.mark.parametrize("name", ["key_length_mla", "kv_lora_rank"])
def test_a_size_of_another_kind_that_is_not_read_counts_for_nothing(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    key = number(f"llama.attention.{name}", float("nan"))
    path.write_bytes(File.nano().with_key(key).encoded)
    with Model.open(path, gpu_layers=0) as model:
        assert model.attention_size(name) == 0
        assert cache_refusal(model, "q8_0", "q4_0") is None
