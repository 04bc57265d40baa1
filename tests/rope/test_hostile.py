"""Small files that no honest tool writes: each is refused in one line, before memory is taken."""

from __future__ import annotations

import math
import struct
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from ggufrope.advice.advise import advise
from ggufrope.errors import FileError, GgufRopeError, RequestError
from ggufrope.patching.inspection import inspect, read_model
from ggufrope.patching.plan import plan_patch
from ggufrope.patching.request import ScalingRequest
from ggufrope.rope.encode import express
from ggufrope.rope.export import export
from ggufrope.rope.frequencies import MAX_ROTARY_DIMENSIONS
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.metadata import RopeMetadata
from ggufrope.rope.overrides import recognize
from ggufrope.rope.scaling import NtkAware
from tests.container.writer import STRING, Model, Tensor

Metadata = Callable[..., RopeMetadata]
U32, F32, F16 = 4, 0, 1
COUNTS = {
    "context_length": 2048,
    "block_count": 1,
    "embedding_length": 64,
    "attention.head_count": 2,
}
FREQS = "rope_freqs.weight"
SLIDING: dict[str, Any] = {"sliding_window": 512, "sliding_window_pattern": (1, 0) * 4}
YARN = ScalingRequest(scaling="yarn", target_context=4096, original_context=1024)


def made(folder: Path, *tensors: Tensor, counts: Mapping[str, int] = MappingProxyType({})) -> Path:
    """A llama file of a few hundred bytes; `counts` are keys with whole numbers."""
    metadata: list[tuple[str, int, Any]] = [("general.architecture", STRING, "llama")]
    metadata += [(f"llama.{key}", U32, value) for key, value in {**COUNTS, **counts}.items()]
    path = folder / "made.gguf"
    path.write_bytes(Model(metadata=metadata, tensors=list(tensors)).encoded())
    return path


def floats(count: int, value: float = 1.0) -> bytes:
    return struct.pack(f"<{count}f", *[value] * count)


def uses(path: Path) -> dict[str, Callable[[], object]]:
    """Every call that computes with the rotary width of a file."""
    model = read_model(path)
    bake = ScalingRequest(scaling="yarn", target_context=4096, original_context=1024, bake=True)
    return {
        "predict": lambda: effective(model.metadata),
        "patch": lambda: plan_patch(path, YARN, output=path.with_name("out.gguf")),
        "bake": lambda: plan_patch(path, bake, output=path.with_name("out.gguf")),
        "export": lambda: export(model.metadata, "vllm"),
        "advise": lambda: advise(model.header, model.metadata, target_context=8192),
    }


@pytest.mark.parametrize(
    ("key", "counts"),
    [
        ("attention.key_length", {"attention.key_length": 1 << 30}),
        ("rope.dimension_count", {"rope.dimension_count": 1 << 26}),
        ("embedding_length", {"embedding_length": (1 << 32) - 2, "attention.head_count": 1}),
        ("rope.dimension_count", {"rope.dimension_count": MAX_ROTARY_DIMENSIONS + 2}),
    ],
)
def test_a_rotary_width_beyond_the_bound_is_refused_before_memory_is_taken(
    tmp_path: Path, key: str, counts: dict[str, int]
) -> None:
    path = made(tmp_path, counts=counts)
    calls = uses(path)
    assert len(calls) == 5
    tracemalloc.start()
    try:
        for call in calls.values():
            with pytest.raises(FileError, match=rf"llama\.{key} gives \d+ rotary dimensions"):
                call()
        found = inspect(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert found.effective is None
    assert f"expected at most {MAX_ROTARY_DIMENSIONS}" in str(found.refusal)
    (finding,) = [f for f in found.findings if f.code == "rotary-dimensions"]
    assert (finding.severity, finding.key) == ("error", f"llama.{key}")


def test_the_largest_rotary_width_is_computed(metadata: Metadata) -> None:
    model = metadata("phi2", dimension_count=MAX_ROTARY_DIMENSIONS, key_length=1 << 16)
    (group,) = effective(model).groups
    assert group.n_rot == MAX_ROTARY_DIMENSIONS


@pytest.mark.parametrize(
    ("width", "expected"),
    [(1 << 30, "at most 65536"), (31, "an even number"), (1, "an even number")],
)
def test_the_rotary_width_of_sliding_layers_is_checked(
    metadata: Metadata, width: int, expected: str
) -> None:
    model = metadata("gemma4", **SLIDING, dimension_count_swa=width)
    with pytest.raises(FileError, match=rf"gemma4\.rope\.dimension_count_swa.*expected {expected}"):
        effective(model)


def test_factors_too_few_for_wider_sliding_layers_are_refused(metadata: Metadata) -> None:
    factors = {FREQS: [1.0] * 32}
    model = metadata("granite_swa", **SLIDING, dimension_count_swa=128, factors=factors)
    with pytest.raises(FileError, match=r"rotate 128 dimensions.*only 32 values"):
        effective(model)


@pytest.mark.parametrize("original", [None, 0])
def test_a_context_length_of_0_is_one_clear_line(tmp_path: Path, original: int | None) -> None:
    counts = {"context_length": 0}
    if original is not None:
        counts["rope.scaling.original_context_length"] = original
    path = made(tmp_path, counts=counts)
    model = read_model(path)
    for request in (
        ScalingRequest(scaling="yarn", target_context=4096),
        ScalingRequest(scaling="linear", factor=2.0),
        ScalingRequest(scaling="yarn", target_context=4096, keep_short_context=True, bake=True),
    ):
        with pytest.raises(RequestError, match="context length"):
            plan_patch(path, request, output=tmp_path / "out.gguf")
    with pytest.raises(GgufRopeError, match="context"):
        advise(model.header, model.metadata, target_context=4096)
    found = inspect(path)
    assert found.effective is None
    assert "llama.context_length is 0: expected a number of tokens" in str(found.refusal)
    assert [f.code for f in found.findings] == ["no-context-length"]


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ((F16, 8, bytes(16)), (F32, 16, floats(16)), "factor-type"),
        ((F32, 8, floats(8)), (F32, 16, floats(16)), "factor-length"),
    ],
)
def test_of_two_factor_tensors_of_one_name_the_first_is_read(
    tmp_path: Path,
    first: tuple[int, int, bytes],
    second: tuple[int, int, bytes],
    code: str,
) -> None:
    twice = [
        Tensor(name=FREQS, shape=(length,), data=data, type=kind)
        for kind, length, data in (first, second)
    ]
    found = inspect(made(tmp_path, *twice))
    assert found.effective is None
    assert FREQS in str(found.refusal)
    assert code in [finding.code for finding in found.findings]


def test_a_factor_tensor_that_fits_no_model_is_not_read(tmp_path: Path) -> None:
    length = MAX_ROTARY_DIMENSIONS // 2 + 1
    path = made(tmp_path, Tensor(name=FREQS, shape=(length,), data=bytes(4 * length)))
    (tensor,) = read_model(path).metadata.factor_tensors
    assert (tensor.length, tensor.values) == (length, None)
    assert "llama.cpp loads only 16" in str(inspect(path).refusal)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_factors_that_give_no_angle_are_refused(tmp_path: Path, value: float) -> None:
    path = made(tmp_path, Tensor(name=FREQS, shape=(16,), data=floats(16, value)))
    found = inspect(path)
    assert found.effective is None
    assert found.refusal == f"{FREQS}[0] is {value:g}: expected a finite number above 0"
    assert [finding.code for finding in found.findings] == ["factor-value"]


def test_a_model_of_drafting_heads_alone_has_no_scheme(metadata: Metadata) -> None:
    model = metadata("glm4moe", block_count=1, nextn_predict_layers=1)
    assert effective(model).groups == ()
    with pytest.raises(RequestError, match="no layer"):
        export(model, "vllm")


@pytest.mark.parametrize("alpha", [5e-324, 1e-9, 1e308])
def test_an_alpha_that_leaves_no_base_is_refused(metadata: Metadata, alpha: float) -> None:
    model = metadata("hunyuan_vl", alpha=alpha)
    for use in (effective, recognize, lambda model: express(NtkAware(factor=2.0), model)):
        with pytest.raises(FileError, match=r"hunyuan_vl\.rope\.scaling\.alpha is .*base"):
            use(model)


@pytest.mark.parametrize(
    ("name", "fields", "loads"),
    [
        ("llama", {"factor": 5e-324}, False),  # 1/factor is infinite
        ("llama", {"factor": 1e308}, True),
        ("grok", {"factor": 4.0, "yarn_beta_fast": 1.7e308}, True),  # no context is that long
        ("mistral3", {"factor": 4.0, "yarn_beta_slow": 5e-324}, True),
        ("llama", {"factor": math.exp(-10)}, False),  # 1 + 0.1 ln factor is 0
    ],
)
def test_numbers_at_the_edge_are_an_answer_or_the_domain_error(
    metadata: Metadata, name: str, fields: dict[str, float], loads: bool
) -> None:
    model = metadata(name, scaling_type="yarn", **fields)
    if loads:
        (group,) = effective(model).groups
        assert all(map(math.isfinite, group.inverse_frequencies))
        assert len(group.inverse_frequencies) == 32
    else:
        with pytest.raises(FileError, match="factor"):
            effective(model)
