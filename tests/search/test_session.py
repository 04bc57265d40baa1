"""Whole searches over a stand-in backend: finished, kept, resumed, interrupted, refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ggufrope._plain import encode
from ggufrope.container.pins import FileChangedError
from ggufrope.errors import BackendError, MissingDependencyError, RequestError, StorageError
from ggufrope.patching.inspection import read_model
from ggufrope.patching.rotation import rotation_of
from ggufrope.rope.factors import parse_factors
from ggufrope.rope.scaling import Yarn
from ggufrope.runtime.fake import FakeContext, FakeModel
from ggufrope.search.engine import SearchProgress
from ggufrope.search.plan import SearchPlan
from ggufrope.search.result import SearchResult
from ggufrope.search.session import run_search
from ggufrope.search.spaces import baselines
from tests.search.standin import HIDDEN, ORIGINAL, TARGET, StandInBackend, write_model

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
    model: Path, folder: Path, plan: SearchPlan = PLAN, backend: Any = None, **more: Any
) -> SearchResult:
    return run_search(read_model(model), plan, backend or StandInBackend(), folder=folder, **more)


def comparable(result: SearchResult) -> object:
    """A result without what the clock says. The fake numbers its tokens as they come, and what it
    does not recall depends on the number in the eighth digit."""
    history = tuple(replace(step, seconds=0.0) for step in result.history)
    timeless = replace(result, history=history, seconds=0.0, overhead_share=0.0)
    return json.loads(json.dumps(encode(timeless)), parse_float=lambda text: round(float(text), 5))


def test_finds_what_beats_yarn_and_says_so(model: Path, tmp_path: Path) -> None:
    result = searched(model, tmp_path / "out")
    assert result.won
    assert result.conclusion.startswith("The search wins. On 3 samples it never saw: recall")
    assert result.short_context_passed
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
        f"--target-ctx 1024 --attn-factor 1 --long-factors {out / 'factors.json'}"
    )
    stored = json.loads((out / "result.json").read_text())
    assert stored["conclusion"] == result.conclusion
    assert len(stored["history"]) == len(result.history)
    assert stored["search"]["candidates"] == PLAN.candidates


def test_an_attention_factor_needs_short_factors(model: Path, tmp_path: Path) -> None:
    result = searched(model, tmp_path / "out", replace(PLAN, attention="formula"))
    assert result.short is not None
    assert result.short.magnitude == result.curves[0].magnitude > 1
    assert {step.stage for step in result.history} == {
        "final", "screening", "holdout", "short-factors", "short-context",
    }  # fmt: skip


def test_shared_factors(model: Path, tmp_path: Path) -> None:
    result = searched(model, tmp_path / "out", replace(PLAN, shared_factors=True))
    assert result.short is None
    assert "--scaling factors" in result.patch_command


def test_progress_has_every_candidate_and_the_time_left(model: Path, tmp_path: Path) -> None:
    seen: list[SearchProgress] = []
    result = searched(model, tmp_path / "out", watch=seen.append)
    assert len(seen) == len(result.history)
    screening = [each for each in seen if each.candidate.stage == "screening"]
    assert 20 < len(screening) <= PLAN.candidates
    assert [each.done for each in screening] == list(range(1, len(screening) + 1))
    bests = [each.best for each in screening if each.best is not None]
    assert bests
    assert bests == sorted(bests, reverse=True)
    assert all(each.left_seconds >= 0 for each in seen)


def test_a_model_that_sees_changes_is_loaded_twice_to_measure_it_and_never_again(
    model: Path, tmp_path: Path
) -> None:
    backend = StandInBackend(mapped=True)
    assert searched(model, tmp_path / "out", backend=backend).updates_in_place
    assert len(backend.loads) == 2


def test_where_a_loaded_model_sees_no_change_each_candidate_loads_it(
    model: Path, tmp_path: Path
) -> None:
    backend = StandInBackend(mapped=False)
    result = searched(model, tmp_path / "loaded", backend=backend)
    assert not result.updates_in_place
    assert len(backend.loads) == 2 + len(result.history)
    assert result.winner == searched(model, tmp_path / "live").winner


def test_the_model_is_untouched_and_working_files_are_gone(model: Path, tmp_path: Path) -> None:
    before, working = model.read_bytes(), tmp_path / "working"
    working.mkdir()
    searched(model, tmp_path / "out", working=working)
    assert model.read_bytes() == before
    assert list(working.iterdir()) == []


class Interrupted(StandInBackend):
    """Ctrl-C in the middle of the n-th evaluation."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def open_context(self, model: FakeModel, n_ctx: int, **more: Any) -> FakeContext:
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt
        return super().open_context(model, n_ctx, **more)


def test_interrupted_it_leaves_the_best_so_far_and_goes_on_from_there(
    model: Path, tmp_path: Path
) -> None:
    whole = searched(model, tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        searched(model, out, backend=Interrupted(after=25))
    best = parse_factors((out / "factors.json").read_bytes(), form="json", name="f")
    assert best.long is not None
    kept = (out / "search.jsonl").read_bytes()
    resumed = searched(model, out)
    assert (out / "search.jsonl").read_bytes().startswith(kept)
    assert comparable(replace(resumed, patch_command="", searched_command="")) == comparable(
        replace(whole, patch_command="", searched_command="")
    )
    again = StandInBackend()
    assert comparable(searched(model, out, backend=again)) == comparable(resumed)
    assert len(again.overrides) == 3  # to see whether it updates in place; no candidate


def test_other_weights_are_another_search(model: Path, tmp_path: Path) -> None:
    searched(model, tmp_path / "out")
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with pytest.raises(RequestError, match="another search: sha256 was"):
        searched(model, tmp_path / "out")


def test_a_model_exchanged_in_mid_search_ends_it(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = searched(model, tmp_path / "whole")
    content = model.read_bytes()
    other = content[:-1] + bytes([content[-1] ^ 1])
    seen = 0

    def watch(progress: SearchProgress) -> None:
        nonlocal seen
        seen += 1
        if seen == 5:
            model.with_name("other").write_bytes(other)
            model.with_name("other").replace(model)

    with pytest.raises(FileChangedError, match=r"model\.gguf has changed"):
        searched(model, out, watch=watch)
    assert len((out / "search.jsonl").read_text().splitlines()) == 1 + 5
    with pytest.raises(RequestError, match="another search: sha256 was"):
        searched(model, out)
    model.write_bytes(content)
    resumed = searched(model, out)
    assert resumed.history[-1].loss == pytest.approx(whole.history[-1].loss, rel=1e-6)


def test_a_model_that_was_only_touched_ends_it_too_and_it_goes_on(
    model: Path, tmp_path: Path
) -> None:
    def watch(progress: SearchProgress) -> None:
        if progress.candidate.number == 3:
            os.utime(model)

    with pytest.raises(FileChangedError, match=r"model\.gguf was touched .* to go on"):
        searched(model, tmp_path / "out", watch=watch)
    assert searched(model, tmp_path / "out").won


def test_a_model_exchanged_after_its_header_was_read_is_refused(
    model: Path, tmp_path: Path
) -> None:
    known = read_model(model)
    write_model(model, architecture="qwen2")
    with pytest.raises(FileChangedError, match="changed after its header was read"):
        run_search(known, PLAN, StandInBackend(), folder=tmp_path / "out")


def test_a_budget_ends_the_screening_and_the_rest_is_done(model: Path, tmp_path: Path) -> None:
    result = searched(model, tmp_path / "out", replace(PLAN, budget_seconds=1e-6))
    assert result.budget_exhausted
    stages = [step.stage for step in result.history]
    assert stages.count("screening") == 1
    assert "holdout" in stages


def test_when_nothing_is_better_it_says_so(model: Path, tmp_path: Path) -> None:
    class Indifferent(StandInBackend):
        """Sees that factors change, but does not care which it has."""

        def confidence(self, factors: tuple[float, ...]) -> float:
            return 0.5 if set(factors) != {1.0} else 0.4

    result = searched(model, tmp_path / "out", backend=Indifferent())
    assert not result.won
    assert "does not win: no difference from YaRN beyond chance" in result.conclusion
    assert result.patch_command == (
        f"ggufrope patch {model} -o {model.with_name('model-1024.gguf')} --scaling yarn "
        "--target-ctx 1024"
    )
    assert "--long-factors" in result.searched_command


@pytest.mark.parametrize("space", ["longrope", "longrope2", "yarn"])
def test_the_winner_is_never_below_yarn_on_what_it_was_chosen_by(
    model: Path, tmp_path: Path, space: Any
) -> None:
    rotation = rotation_of(read_model(model).metadata, target_context=TARGET)
    yarn = baselines(rotation)["yarn"]
    plan = replace(PLAN, space=space, budget_seconds=1e-6)
    backend = StandInBackend(hidden=rotation.relative_factors(yarn))
    result = searched(model, tmp_path / "out", plan, backend)
    finals = {step.loss for step in result.history if step.stage == "final"}
    assert len([step for step in result.history if step.stage == "screening"]) == 1
    assert result.history[0].loss == min(finals)
    assert result.curves[0].factors == pytest.approx(rotation.relative_factors(yarn), rel=1e-6)
    assert not result.won
    assert "--scaling yarn" in result.patch_command


def test_an_architecture_without_factors_searches_yarns_parameters(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf", "qwen2")
    with pytest.raises(
        RequestError, match="no factor tensors for qwen2: search with the space yarn"
    ):
        searched(model, tmp_path / "refused")

    class ByFlags(StandInBackend):
        """Answers by how many pairs are kept."""

        def open_context(self, model: FakeModel, n_ctx: int, **more: Any) -> FakeContext:
            beta = more["rope"].yarn_beta_fast
            model.confidence = 0.9 if beta and beta < 12 else 0.5
            return FakeContext(model, n_ctx=n_ctx)

    backend = ByFlags()
    plan = replace(PLAN, space="yarn", attention="formula", candidates=12)
    result = searched(model, tmp_path / "out", plan, backend)
    assert result.won
    assert result.winner["scheme"] == Yarn.__name__
    assert len(backend.loads) == 1
    assert "--yarn-beta-fast" in result.flags
    assert "--scaling yarn" in result.patch_command


def test_a_missing_part_is_found_before_the_folder_is_made(model: Path, tmp_path: Path) -> None:
    class Absent(StandInBackend):
        def require(self) -> None:
            raise MissingDependencyError("no runtime here")

    with pytest.raises(MissingDependencyError, match="no runtime here"):
        searched(model, tmp_path / "out", backend=Absent())
    assert not (tmp_path / "out").exists()


def test_without_cma_no_folder_is_made(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['cma'] = None\n"
        "from pathlib import Path\n"
        "from ggufrope import FakeBackend, SearchPlan, run_search\n"
        f"plan = SearchPlan(target_context={TARGET})\n"
        "run_search(sys.argv[1], plan, FakeBackend(), folder=Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", code, str(model), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "MissingDependencyError: CMA-ES needs the cma package" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_a_path_is_enough(model: Path, tmp_path: Path) -> None:
    result = run_search(str(model), PLAN, StandInBackend(), folder=tmp_path / "out")
    assert comparable(result) == comparable(
        replace(
            searched(model, tmp_path / "again"),
            patch_command=result.patch_command,
            searched_command=result.searched_command,
        )
    )


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


def test_a_backend_that_fails_ends_the_search_with_its_reason(model: Path, tmp_path: Path) -> None:
    class Failing(StandInBackend):
        def open_context(self, model: FakeModel, n_ctx: int, **more: Any) -> FakeContext:
            if n_ctx == TARGET:
                raise BackendError("no memory for that")
            return super().open_context(model, n_ctx, **more)

    with pytest.raises(BackendError, match="no memory for that"):
        searched(model, tmp_path / "out", backend=Failing())
