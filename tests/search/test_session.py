"""Whole searches over a stand-in runtime: found, kept, resumed, interrupted, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ggufrope.errors import BackendError, RequestError, StorageError
from ggufrope.patching.inspection import read_model
from ggufrope.rope.factors import parse_factors
from ggufrope.rope.scaling import Yarn
from ggufrope.runtime.fake import FakeContext
from ggufrope.search.engine import SearchProgress
from ggufrope.search.plan import SearchPlan
from ggufrope.search.result import SearchResult
from ggufrope.search.session import run_search
from tests.search.standin import HIDDEN, ORIGINAL, TARGET, StandInModel, StandInRuntime, write_model

if TYPE_CHECKING:
    from pathlib import Path

PLAN = SearchPlan(
    target_context=TARGET,
    attention="none",
    optimizer="evolution",
    candidates=40,
    finalists=2,
    samples=2,
    screening_samples=1,
    screening_context=512,
    holdout_samples=3,
    depths=(0, 100),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf")


def searched(
    model: Path, folder: Path, plan: SearchPlan = PLAN, runtime: Any = None, **more: Any
) -> SearchResult:
    return run_search(read_model(model), plan, runtime or StandInRuntime(), folder=folder, **more)


def comparable(result: SearchResult) -> SearchResult:
    """A result without what the clock says."""
    history = tuple(replace(step, seconds=0.0) for step in result.history)
    return replace(result, history=history, seconds=0.0, overhead_share=0.0)


def test_finds_what_beats_yarn_and_says_so(model: Path, tmp_path: Path) -> None:
    result = searched(model, tmp_path / "out")
    assert result.won
    assert result.conclusion.startswith("The search wins. On 3 samples it never saw: recall")
    assert result.gate_passed
    curve = result.curves[0]
    assert curve.name == "searched"
    distances = {
        curve.name: sum(abs(f - h) for f, h in zip(curve.factors, HIDDEN, strict=True))
        for curve in result.curves
    }
    assert distances["searched"] == min(distances.values())


def test_writes_factors_that_patch_reads_and_the_command(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = searched(model, out)
    data = (out / "factors.json").read_bytes()
    factors = parse_factors(data, form="json", name="factors.json")
    assert factors.long == pytest.approx(result.curves[0].factors)
    assert factors.short == (1.0,) * len(HIDDEN)
    assert result.patch_command == (
        f"ggufrope patch {model} -o {model.with_name('model-1024.gguf')} --scaling longrope "
        f"--long-factors {out / 'factors.json'} --target-ctx 1024 --attn-factor 1"
    )
    stored = json.loads((out / "result.json").read_text())
    assert stored["conclusion"] == result.conclusion
    assert len(stored["history"]) == len(result.history)
    assert stored["search"]["candidates"] == PLAN.candidates


def test_a_free_attention_factor_asks_for_a_short_factors(model: Path, tmp_path: Path) -> None:
    result = searched(model, tmp_path / "out", replace(PLAN, attention="formula"))
    assert result.short is not None
    assert result.short.magnitude == result.curves[0].magnitude > 1
    assert {step.stage for step in result.history} == {
        "final", "screening", "holdout", "short", "gate",
    }  # fmt: skip


def test_one_face_where_asked_for(model: Path, tmp_path: Path) -> None:
    result = searched(model, tmp_path / "out", replace(PLAN, keep_short_context=False))
    assert result.short is None
    assert "--scaling factors" in result.patch_command


def test_progress_tells_every_candidate_and_the_time_left(model: Path, tmp_path: Path) -> None:
    seen: list[SearchProgress] = []
    result = searched(model, tmp_path / "out", watch=seen.append)
    assert len(seen) == len(result.history)
    screening = [each for each in seen if each.candidate.stage == "screening"]
    assert [each.done for each in screening] == list(range(1, len(screening) + 1))
    bests = [each.best for each in screening if each.best is not None]
    assert bests == sorted(bests, reverse=True)
    assert all(each.left_seconds >= 0 for each in seen)


def test_a_live_bench_loads_twice_to_prove_it_and_never_again(model: Path, tmp_path: Path) -> None:
    runtime = StandInRuntime(live=True)
    assert searched(model, tmp_path / "out", runtime=runtime).live
    assert len(runtime.loads) == 2


def test_where_a_loaded_model_sees_no_change_each_candidate_loads_it(
    model: Path, tmp_path: Path
) -> None:
    runtime = StandInRuntime(live=False)
    result = searched(model, tmp_path / "loaded", runtime=runtime)
    assert not result.live
    assert len(runtime.loads) == 2 + len(result.history)
    assert result.winner == searched(model, tmp_path / "live").winner


def test_the_model_is_untouched_and_working_files_are_gone(model: Path, tmp_path: Path) -> None:
    before, working = model.read_bytes(), tmp_path / "working"
    working.mkdir()
    searched(model, tmp_path / "out", working=working)
    assert model.read_bytes() == before
    assert list(working.iterdir()) == []


class Interrupted(StandInRuntime):
    """Ctrl-C in the middle of the n-th evaluation."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def open_context(self, model: StandInModel, n_ctx: int, rope: Any) -> FakeContext:
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt
        return super().open_context(model, n_ctx, rope)


def test_interrupted_it_leaves_the_best_so_far_and_goes_on_from_there(
    model: Path, tmp_path: Path
) -> None:
    whole = searched(model, tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        searched(model, out, runtime=Interrupted(after=25))
    best = parse_factors((out / "factors.json").read_bytes(), form="json", name="f")
    assert best.long is not None
    kept = (out / "search.jsonl").read_bytes()
    resumed = searched(model, out)
    assert (out / "search.jsonl").read_bytes().startswith(kept)
    assert comparable(replace(resumed, patch_command="")) == comparable(
        replace(whole, patch_command="")
    )
    again = StandInRuntime()
    assert comparable(searched(model, out, runtime=again)) == comparable(resumed)
    assert len(again.overrides) == 3  # the proof that it is live, and no candidate


def test_other_weights_are_another_search(model: Path, tmp_path: Path) -> None:
    searched(model, tmp_path / "out")
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with pytest.raises(RequestError, match="another search: fingerprint was"):
        searched(model, tmp_path / "out")


def test_a_budget_ends_the_screening_and_the_rest_is_done(model: Path, tmp_path: Path) -> None:
    result = searched(model, tmp_path / "out", replace(PLAN, budget_seconds=1e-6))
    assert result.spent
    stages = [step.stage for step in result.history]
    assert stages.count("screening") == 1
    assert "holdout" in stages


def test_when_nothing_is_better_it_says_so(model: Path, tmp_path: Path) -> None:
    class Indifferent(StandInRuntime):
        """Sees that factors change, but does not care which it has."""

        def confidence(self, factors: tuple[float, ...]) -> float:
            return 0.5 if set(factors) != {1.0} else 0.4

    result = searched(model, tmp_path / "out", runtime=Indifferent())
    assert not result.won
    assert "does not win: no difference from YaRN beyond chance" in result.conclusion


def test_an_architecture_without_factors_searches_yarns_parameters(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf", "qwen2")
    with pytest.raises(
        RequestError, match="no factor tensors for qwen2: search with the space yarn"
    ):
        searched(model, tmp_path / "refused")

    class ByFlags(StandInRuntime):
        """Answers by how many pairs are kept."""

        def open_context(self, model: StandInModel, n_ctx: int, rope: Any) -> FakeContext:
            self.overrides.append(rope)
            model.confidence = 0.9 if rope.yarn_beta_fast and rope.yarn_beta_fast < 12 else 0.5
            return FakeContext(model, n_ctx=n_ctx)

    runtime = ByFlags()
    plan = replace(PLAN, space="yarn", attention="formula", candidates=12)
    result = searched(model, tmp_path / "out", plan, runtime)
    assert result.won
    assert result.winner["scheme"] == Yarn.__name__
    assert len(runtime.loads) == 1
    assert "--yarn-beta-fast" in result.flags
    assert "--scaling yarn" in result.patch_command


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_context": ORIGINAL, "screening_context": None}, "not above the original"),
        ({"fitness": "speed"}, "expected one of needle, perplexity"),
        ({"space": "ntk"}, "expected one of longrope, longrope2, yarn"),
        ({"optimizer": "grid"}, "expected one of evolution, cma"),
    ],
)
def test_what_makes_no_sense_is_refused(
    model: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        searched(model, tmp_path / "out", replace(PLAN, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 0},
        {"candidates": 7},
        {"holdout_samples": 1},
        {"budget_seconds": float("nan")},
        {"screening_context": TARGET + 1},
    ],
)
def test_a_plan_that_makes_no_sense_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        replace(PLAN, **changes)


def test_a_working_folder_that_is_not_there(model: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="absent"):
        searched(model, tmp_path / "out", working=tmp_path / "absent")


def test_a_runtime_that_fails_ends_the_search_with_its_reason(model: Path, tmp_path: Path) -> None:
    class Failing(StandInRuntime):
        def open_context(self, model: StandInModel, n_ctx: int, rope: Any) -> FakeContext:
            if n_ctx == TARGET:
                raise BackendError("no memory for that")
            return super().open_context(model, n_ctx, rope)

    with pytest.raises(BackendError, match="no memory for that"):
        searched(model, tmp_path / "out", runtime=Failing())
