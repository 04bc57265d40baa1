"""The seam to a runtime, over llama.cpp: models that rotate as asked, however they are made to."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from fixtures.make import build
from ggufrope import FakeBackend, LlamaBackend, RuntimeSettings, ScalingRequest, open_model
from ggufrope._files import working_folder
from ggufrope.backends.opened import opener
from ggufrope.backends.scaled import ScaledModel
from ggufrope.container.ggml import KvTypes
from ggufrope.errors import RequestError
from ggufrope.lm import Branch, LanguageContext
from ggufrope.patching.inspection import read_model
from ggufrope.patching.plan import apply, plan_patch
from ggufrope.runtime import library
from ggufrope.runtime.context import Context
from ggufrope.runtime.fake import FakeContext, FakeModel
from ggufrope.runtime.model import Model

if TYPE_CHECKING:
    from ggufrope.patching.request import ScalingName
    from ggufrope.rope.effective import RopeOverrides

F16 = KvTypes.parse("f16")
FILE = ScalingRequest(scaling="file")
ONE_THREAD = RuntimeSettings(gpu_layers=0, threads=1)
TEXT = "The river runs down to the sea, and the road goes on. " * 8


class CountingBackend:
    """llama.cpp on one thread; what was loaded is remembered."""

    def __init__(self) -> None:
        self._backend = LlamaBackend(settings=ONE_THREAD)
        self.loads: list[tuple[Path, Mapping[str, object]]] = []
        self.require = self._backend.require
        self.open_context = self._backend.open_context
        self.versions = self._backend.versions
        self.describe = self._backend.describe

    def fitted(self, path: Path, context_tokens: int) -> CountingBackend:
        return self

    def load(self, path: Path, kv_overrides: Mapping[str, int | float | bool | str]) -> Model:
        self.loads.append((path, kv_overrides))
        return self._backend.load(path, kv_overrides)


def log_probabilities(context: LanguageContext, tokens: list[int]) -> tuple[float, ...]:
    """Nat per token of a piece of text after another."""
    context.extend(tokens[:64])
    branch = Branch(prompt=(tokens[64],), answers=(tuple(tokens[65:96]),))
    ((score,),) = context.score([branch])
    context.close()
    return score.log_probabilities


# Models under the scalings of a run --------------------------------------------------------------


@pytest.fixture(scope="module")
def backend() -> CountingBackend:
    return CountingBackend()


@pytest.fixture(scope="module")
def opened(nano: Path, backend: CountingBackend) -> Iterator[ScaledModel[Model]]:
    with closing(ScaledModel(nano, backend)) as model:
        yield model


@pytest.mark.parametrize("scaling", ["file", "yarn", "ntk-by-parts"])
def test_a_nudged_model_rotates_by_a_base_that_differs_in_its_last_bits(
    nano: Path, scaling: ScalingName
) -> None:
    """Whether the scheme is in context parameters or in tensors."""

    class Watching(FakeBackend):
        ropes: ClassVar[list[RopeOverrides]] = []

        def open_context(self, model: FakeModel, n_ctx: int, **more: Any) -> FakeContext:
            self.ropes.append(more["rope"])
            return super().open_context(model, n_ctx, **more)

    request = ScalingRequest(scaling=scaling, factor=None if scaling == "file" else 4)
    with closing(ScaledModel(nano, Watching())) as model:
        for nudged in (False, True):
            model.contexts(request, F16, largest=512, nudged=nudged)(512).close()
    plain, other = Watching.ropes
    base = read_model(nano).metadata.freq_base or 10_000.0
    assert other.freq_base == pytest.approx(base, rel=1e-4)
    assert other.freq_base != base
    assert replace(other, freq_base=plain.freq_base) == plain


RISING = tuple(1 + j / 8 for j in range(16))
WRITTEN = {
    "baked": ScalingRequest(scaling="yarn", factor=4, bake=True),
    "short context kept": ScalingRequest(scaling="yarn", factor=4, keep_short_context=True),
    "attention factor": ScalingRequest(scaling="yarn", factor=4, attn_factor=1.3),
    "ntk-by-parts": ScalingRequest(scaling="ntk-by-parts", factor=4),
    "llama3": ScalingRequest(scaling="llama3", factor=4),
    "base": ScalingRequest(scaling="linear", factor=4, bake=True, freq_base=20_000.0),
    "longrope": ScalingRequest(scaling="longrope", factor=4, long_factors=RISING, attn_factor=1.1),
    "factors": ScalingRequest(scaling="factors", factor=2, long_factors=RISING),
}
"""Schemes that context parameters cannot say."""


@pytest.mark.llama
@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("n_ctx", [256, 512])
def test_an_overlay_is_to_the_last_bit_what_the_patch_is(
    name: str,
    n_ctx: int,
    opened: ScaledModel[Model],
    backend: CountingBackend,
    nano: Path,
    tmp_path: Path,
) -> None:
    context = opened.contexts(WRITTEN[name], F16, largest=1024)(n_ctx)
    assert isinstance(context, Context)
    assert context.model.path.is_symlink() or context.model.path == nano
    tokens, cells = opened.model.tokenize(TEXT, beginning=True), context.n_ctx
    found = log_probabilities(context, tokens)
    copy = tmp_path / "copy.gguf"
    apply(plan_patch(nano, WRITTEN[name], output=copy))
    with closing(ScaledModel(copy, backend)) as written:
        other = written.contexts(FILE, F16, largest=1024)(n_ctx)
        assert other.n_ctx == cells
        assert log_probabilities(other, tokens) == found
    plain = log_probabilities(opened.contexts(FILE, F16, largest=1024)(n_ctx), tokens)
    assert (found == plain) == (name == "short context kept" and n_ctx == 256)


@pytest.mark.llama
@pytest.mark.parametrize(
    ("architecture", "scaling"),
    [
        ("cohere2", ScalingRequest(scaling="yarn", factor=4, attn_factor=1.3)),
        ("gemma2", ScalingRequest(scaling="linear", factor=4)),
        ("gemma3", ScalingRequest(scaling="linear", factor=4)),
        ("gpt-oss", ScalingRequest(scaling="yarn", factor=4)),
        ("phi3", ScalingRequest(scaling="linear", factor=4, keep_short_context=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_sliding_windows_and_long_factors_are_as_in_the_patch(
    architecture: str, scaling: ScalingRequest, backend: CountingBackend, tmp_path: Path
) -> None:
    path = build(architecture, tmp_path / "model.gguf", context=256)[0]
    copy = tmp_path / "copy.gguf"
    apply(plan_patch(path, scaling, output=copy))
    tokens = list(range(3, 103))
    with (
        closing(ScaledModel(path, backend)) as opened,
        closing(ScaledModel(copy, backend)) as written,
    ):
        found = log_probabilities(opened.contexts(scaling, F16, largest=1024)(512), tokens)
        assert log_probabilities(written.contexts(FILE, F16, largest=1024)(512), tokens) == found


@pytest.mark.llama
def test_a_real_model_is_overlaid_to_the_last_bit(
    smollm2: Path, backend: CountingBackend, tmp_path: Path
) -> None:
    scaling = ScalingRequest(scaling="yarn", factor=2, keep_short_context=True)
    copy = tmp_path / "copy.gguf"
    apply(plan_patch(smollm2, scaling, output=copy))
    found = []
    for path, request in ((smollm2, scaling), (copy, FILE), (smollm2, FILE)):
        with closing(ScaledModel(path, backend, working=tmp_path)) as opened:
            context = opened.contexts(request, F16, largest=16_384)(8448)  # of the long factors
            assert isinstance(context, Context)
            found.append(log_probabilities(context, context.model.tokenize(TEXT, beginning=True)))
    overlaid, written, plain = found
    assert overlaid == written != plain


@pytest.mark.llama
def test_schemes_share_the_weights_or_lay_a_few_bytes_over_them(nano: Path, tmp_path: Path) -> None:
    backend = CountingBackend()
    with closing(ScaledModel(nano, backend, working=tmp_path)) as opened:
        for request in (FILE, ScalingRequest(scaling="linear", factor=2)):
            with closing(opened.contexts(request, F16, largest=512)(512)) as context:
                assert isinstance(context, Context)
                assert context.model is opened.model
        baked = ScalingRequest(scaling="linear", factor=2, bake=True)
        for _ in range(2):
            with closing(opened.contexts(baked, F16, largest=512)(512)) as context:
                assert isinstance(context, Context)
                assert context.model is not opened.model
                overlaid = context.model.path
        assert overlaid.samefile(nano)
        assert len(backend.loads) == 2
        written = [path for path in overlaid.parent.iterdir() if not path.is_symlink()]
        assert len(written) == 1
        assert written[0].stat().st_size < 1024
    assert list(tmp_path.iterdir()) == []


@pytest.mark.llama
def test_where_factors_of_the_file_change_a_working_copy_is_made(
    nano: Path, tmp_path: Path
) -> None:
    llama3 = ScalingRequest(scaling="llama3", factor=4)
    path, working = tmp_path / "llama3.gguf", tmp_path / "working"
    apply(plan_patch(nano, llama3, output=path))
    working.mkdir()
    backend = CountingBackend()
    with closing(ScaledModel(path, backend, working=working)) as opened:
        request = ScalingRequest(scaling="yarn", factor=8, bake=True)
        tokens = opened.model.tokenize(TEXT, beginning=True)
        found = log_probabilities(opened.contexts(request, F16, largest=512)(512), tokens)
        copy, overrides = backend.loads[-1]
        assert working in copy.parents
        assert not copy.is_symlink()
        assert overrides == {}
        with closing(ScaledModel(copy, backend)) as again:
            other = again.contexts(FILE, F16, largest=512)(512)
            assert log_probabilities(other, tokens) == found
    assert list(working.iterdir()) == []


def test_what_a_patch_refuses_an_overlay_refuses_too(tmp_path: Path) -> None:
    keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    (path,) = build("llama", tmp_path / "linear.gguf", context=1024, keys=keys)
    request = ScalingRequest(scaling="yarn", target_context=2048, original_context=300, bake=True)
    with pytest.raises(RequestError, match="not where a scaling of this file starts") as refused:
        plan_patch(path, request, output=tmp_path / "out.gguf")
    with closing(ScaledModel(path, CountingBackend())) as opened:
        with pytest.raises(RequestError) as found:
            opened.contexts(request, F16, largest=512)
        assert str(found.value) in str(refused.value)


@pytest.mark.llama
def test_questions_have_room_beside_a_full_context_but_never_change_the_factors(
    opened: ScaledModel[Model],
) -> None:
    keep_short_context = ScalingRequest(scaling="yarn", factor=4, keep_short_context=True)
    for request, n_ctx, cells in (
        (FILE, 256, 768),
        (keep_short_context, 256, 256),  # with more it would take its long factors
        (keep_short_context, 512, 1024),
    ):
        with closing(opened.contexts(request, F16, largest=1024)(n_ctx)) as context:
            assert context.n_ctx == cells


@pytest.mark.llama
@pytest.mark.usefixtures("only_cpu")
@pytest.mark.parametrize("gpu_layers", ["all", "auto", 0])
def test_without_a_gpu_no_layer_is_on_one(nano: Path, gpu_layers: str | int) -> None:
    settings = RuntimeSettings(gpu_layers=gpu_layers)  # type: ignore[arg-type]
    with closing(open_model(nano, settings)) as opened:
        opened.contexts(FILE, F16, largest=512)
        assert opened.details["layers on GPU"] == "0 of 3"


def test_the_fake_is_a_backend_as_well(nano: Path) -> None:
    fake = FakeBackend(lambda path: FakeModel(confidence=0.7))
    with closing(ScaledModel(nano, fake)) as opened:
        context = opened.contexts(ScalingRequest(scaling="yarn", factor=4), F16, largest=512)(512)
        assert context.n_ctx == 1024
        assert opened.model.confidence == 0.7
        assert "fake" in opened.details["llama.cpp"]


def test_openers_are_found_by_name() -> None:
    assert opener("ggufrope.backends.opened:open_model") is open_model
    for name in (
        "ggufrope.backends.opened:open_nothing",
        "ggufrope.nowhere:open_model",
        "open_model",
    ):
        with pytest.raises(RequestError, match=f"no opener '{name}': expected package"):
            opener(name)


# Working folders ----------------------------------------------------------------------------------


def test_a_folder_whose_owner_was_killed_is_removed_by_the_next(tmp_path: Path) -> None:
    abandoned, starting, foreign = (
        tmp_path / name for name in ("ggufrope-work-a", "ggufrope-work-b", "ggufrope-work-c")
    )
    for folder, owner in ((abandoned, ".owner"), (starting, ".owner-starting"), (foreign, "x")):
        folder.mkdir()
        (folder / "model.gguf").write_bytes(b"weights")
        (folder / owner).touch()
    with working_folder(tmp_path) as used:
        assert used.parent == tmp_path
        with working_folder(tmp_path) as other:
            assert used.exists()
            assert sorted(tmp_path.iterdir()) == sorted((starting, foreign, used, other))
    assert sorted(tmp_path.iterdir()) == [starting, foreign]
    long_ago = time.time() - 3600
    os.utime(starting, (long_ago, long_ago))
    with working_folder(tmp_path):
        pass
    assert sorted(tmp_path.iterdir()) == [foreign]


def test_what_only_looks_like_an_owner_is_left_alone(tmp_path: Path) -> None:
    for name in ("link", "pipe", "folder"):
        (tmp_path / f"ggufrope-work-{name}").mkdir()
    (tmp_path / "ggufrope-work-file").touch()
    (tmp_path / "target").touch()
    (tmp_path / "ggufrope-work-link" / ".owner").symlink_to(tmp_path / "target")
    (tmp_path / "ggufrope-work-folder" / ".owner").mkdir()
    os.mkfifo(tmp_path / "ggufrope-work-pipe" / ".owner")
    before = sorted(tmp_path.iterdir())
    with working_folder(tmp_path):
        pass
    assert before == sorted(tmp_path.iterdir())


# Devices ------------------------------------------------------------------------------------------


@pytest.mark.llama
def test_devices_that_are_not_there_are_refused_and_not_replaced(nano: Path) -> None:
    backend = LlamaBackend(settings=RuntimeSettings(devices=("7",)))
    if library.can_offload():
        pytest.skip("this machine may have the device")
    with pytest.raises(RequestError, match="`devices` 7: this build has no CUDA"):
        backend.load(nano, {})
