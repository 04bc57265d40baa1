"""Whole searches over a stand-in backend: finished, kept, resumed, interrupted, refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import pytest

from ggufrope._plain import encode
from ggufrope.container.pins import FileChangedError
from ggufrope.errors import BackendError, MissingDependencyError, RequestError, StorageError
from ggufrope.evals.texts import Text
from ggufrope.patching.inspection import read_model
from ggufrope.patching.rotation import rotation_of
from ggufrope.rope.factors import parse_factors
from ggufrope.rope.scaling import Yarn
from ggufrope.runtime.fake import FakeContext, FakeModel
from ggufrope.search.engine import SearchProgress
from ggufrope.search.plan import SearchPlan
from ggufrope.search.result import SearchResult
from ggufrope.search.schemes import decode_scheme
from ggufrope.search.session import run_search
from ggufrope.search.spaces import SpaceName, baselines, make_space
from tests.search.standin import HIDDEN, ORIGINAL, TARGET, StandInBackend, write_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ggufrope.rope.effective import RopeOverrides

PLAN = SearchPlan(
    target_context=TARGET,
    space="longrope",
    attention="none",
    optimizer="evolution",
    candidates=40,
    finalists=2,
    samples=2,
    haystacks=2,
    screening_samples=1,
    screening_context=512,
    holdout_haystacks=3,
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


def without_paths(result: SearchResult) -> SearchResult:
    return replace(result, patch_command="", searched_patch_command="")


def test_finds_what_beats_yarn_and_says_so(model: Path, tmp_path: Path) -> None:
    result = searched(model, tmp_path / "out")
    assert result.won
    assert result.conclusion.startswith("The search wins. On 3 haystacks it never saw: recall")
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
    assert result.serve_command == ""  # no flag says factors
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
    schemes = {each.candidate.scheme for each in screening}
    assert 20 < len(schemes) <= PLAN.candidates
    assert len(schemes) < len(screening) < 4 * len(schemes)  # a race: some are judged again
    assert [each.done for each in screening] == list(range(1, len(screening) + 1))
    bests = [each.best for each in screening if each.best is not None]
    assert bests
    assert bests == sorted(bests, reverse=True)
    assert all(each.left_seconds >= each.least_seconds >= 0 for each in seen)
    assert seen[-1].least_seconds == 0


def test_progress_says_from_the_start_what_no_budget_cuts_short(
    model: Path, tmp_path: Path
) -> None:
    seen: list[SearchProgress] = []
    searched(model, tmp_path / "out", replace(PLAN, budget_seconds=1e-6), watch=seen.append)
    first = seen[0]
    assert first.left_seconds >= first.least_seconds > first.elapsed_seconds * (len(seen) - 1) / 2
    assert seen[-1].least_seconds == 0


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
    assert len(backend.loads) > len({step.number for step in result.history}) / 2
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
    assert comparable(without_paths(resumed)) == comparable(without_paths(whole))
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
    steps = [(step.stage, step.haystack) for step in result.history]
    generation = [step for step in steps if step[0] == "screening"]
    assert set(generation) == {("screening", 0)}
    assert len(generation) < PLAN.candidates
    assert {haystack for stage, haystack in steps if stage == "final"} == {0}
    assert ("holdout", 0) in steps


def test_when_nothing_is_better_it_says_so(model: Path, tmp_path: Path) -> None:
    class Indifferent(StandInBackend):
        """Sees that factors change, but does not care which it has."""

        def confidence(self, factors: tuple[float, ...]) -> float:
            return 0.5 if set(factors) != {1.0} else 0.4

    result = searched(model, tmp_path / "out", backend=Indifferent())
    assert not result.won
    assert result.conclusion.startswith("The search found nothing better than YaRN. In the finals")
    assert result.holdout == ()  # nothing to ask
    assert result.patch_command == (
        f"ggufrope patch {model} -o {model.with_name('model-1024.gguf')} --scaling yarn "
        "--target-ctx 1024"
    )
    assert "--long-factors" in result.searched_patch_command


@pytest.mark.parametrize("space", get_args(SpaceName))
def test_the_pick_is_never_below_yarn_or_a_seed_on_what_it_was_chosen_by(
    model: Path, tmp_path: Path, space: SpaceName
) -> None:
    """The hidden factors are those of YaRN: whatever is searched, with no time for it, loses."""
    rotation = rotation_of(read_model(model).metadata, target_context=TARGET)
    yarn = baselines(rotation)["yarn"]
    plan = replace(PLAN, space=space, budget_seconds=1e-6)
    backend = StandInBackend(hidden=yarn.factors(rotation))
    result = searched(model, tmp_path / "out", plan, backend)
    assert not result.won
    assert "--scaling yarn" in result.patch_command
    assert all(finalist.difference >= -1e-6 for finalist in result.finals)
    best = min(f.loss for f in result.finals if f.name != "yarn")
    assert result.finals[0].loss == best
    seeds = make_space(space, rotation, plan.attention).seeds()
    others = [
        scheme
        for scheme in map(make_space(space, rotation, plan.attention).scheme, seeds)
        if not scheme.turns_like(yarn, rotation)
    ]
    raced = [decode_scheme(dict(finalist.scheme)) for finalist in result.finals]
    assert others
    for scheme in others:
        assert any(scheme.turns_like(each, rotation) for each in raced)


class ByFlags(StandInBackend):
    """Answers by the context parameters: well under the ones hoped for."""

    def __init__(self, hoped: Callable[[RopeOverrides], bool]) -> None:
        super().__init__()
        self.hoped = hoped

    def open_context(self, model: FakeModel, n_ctx: int, **more: Any) -> FakeContext:
        self.overrides.append(more["rope"])
        model.confidence = 0.9 if self.hoped(more["rope"]) else 0.5
        return FakeContext(model, n_ctx=n_ctx)


def test_an_architecture_without_factors_searches_yarns_parameters(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf", "qwen2")
    with pytest.raises(
        RequestError, match="no factor tensors for qwen2: search with the space yarn"
    ):
        searched(model, tmp_path / "refused")
    backend = ByFlags(lambda rope: 0 < (rope.yarn_beta_fast or 0) < 12)
    plan = replace(PLAN, space="yarn", attention="formula", candidates=12)
    result = searched(model, tmp_path / "out", plan, backend)
    assert result.won
    assert result.winner["scheme"] == Yarn.__name__
    assert len(backend.loads) == 1
    assert "--yarn-beta-fast" in result.serve_command
    assert "--scaling yarn" in result.patch_command
    assert "--beta-fast" in result.patch_command
    assert not (tmp_path / "out" / "factors.json").exists()


def test_yarn_beyond_the_factor_of_the_target_is_written_and_served_with_its_own(
    tmp_path: Path,
) -> None:
    model = write_model(tmp_path / "model.gguf", "qwen2")
    backend = ByFlags(lambda rope: 0 < (rope.freq_scale or 1) < 0.15)
    plan = replace(PLAN, space="yarn-factor", attention="formula", candidates=12)
    result = searched(model, tmp_path / "out", plan, backend)
    assert result.won
    factor = float(str(result.winner["factor"]))
    assert factor > TARGET / ORIGINAL / 0.65
    found = re.search(r"--factor (\S+)", result.patch_command)
    assert found is not None
    assert float(found[1]) == pytest.approx(factor)
    assert f"--target-ctx {TARGET}" in result.patch_command
    assert f"-c {TARGET} --rope-scaling yarn" in result.serve_command
    scale = re.search(r"--rope-(?:freq-)?scale (\S+)", result.serve_command)
    assert scale is not None
    assert float(scale[1]) in (pytest.approx(factor), pytest.approx(1 / factor))


def test_a_base_needs_no_file(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf", "qwen2")
    backend = ByFlags(lambda rope: (rope.freq_base or 0) > 60_000)
    plan = replace(PLAN, space="base", optimizer="cma", candidates=12)
    result = searched(model, tmp_path / "out", plan, backend)
    assert result.won
    assert result.short is None
    assert float(str(result.winner["freq_base"])) > 60_000
    assert result.serve_command.startswith(f"llama-server -m {model} -c {TARGET} --rope-scaling")
    assert "--rope-freq-base" in result.serve_command
    assert "--scaling none" in result.patch_command
    assert "--freq-base" in result.patch_command


def test_base_and_attention_that_no_file_can_say_are_flags_alone(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf", "qwen2")
    backend = ByFlags(lambda rope: (rope.yarn_attn_factor or 1) > 1.02)
    plan = replace(PLAN, space="base", attention="free", optimizer="cma", candidates=12)
    result = searched(model, tmp_path / "out", plan, backend)
    assert result.won
    assert result.patch_command == ""
    assert "--yarn-ext-factor 0 --yarn-attn-factor 1." in result.serve_command


def test_attention_within_the_trained_context_is_compared_with_the_model_itself(
    tmp_path: Path,
) -> None:
    model = write_model(tmp_path / "model.gguf", "qwen2")
    backend = ByFlags(lambda rope: (rope.yarn_attn_factor or 1) > 1.05)
    plan = replace(
        PLAN,
        space="attention",
        target_context=ORIGINAL,
        screening_context=None,
        optimizer="cma",
        candidates=12,
    )
    result = searched(model, tmp_path / "out", plan, backend)
    assert result.to_beat == "unscaled"
    assert result.won
    assert "the model as it stands" in result.conclusion
    assert "--yarn-attn-factor" in result.serve_command
    lost = searched(model, tmp_path / "lost", plan, ByFlags(lambda rope: False))
    assert not lost.won
    assert (lost.patch_command, lost.serve_command) == ("", "")  # nothing to change


def test_a_search_for_two_lengths_shows_the_front_of_both(model: Path, tmp_path: Path) -> None:
    plan = replace(PLAN, short_weight=0.4, screening_context=None)
    result = searched(model, tmp_path / "out", plan)
    assert result.short is None  # one set of factors for all contexts
    judged = [each for each in result.finals if each.target_loss is not None]
    assert len(judged) > 1
    assert all(each.original_loss is not None for each in judged)
    assert not any(each.on_front for each in result.finals if each not in judged)
    first = result.finals[0]
    assert first.target_loss is not None
    assert first.original_loss is not None
    assert first.loss == pytest.approx(0.6 * first.target_loss + 0.4 * first.original_loss)
    most = max(each.haystacks for each in result.finals)
    last = [each for each in judged if each.haystacks == most]
    assert min(last, key=lambda each: (each.target_loss, each.original_loss)).on_front
    assert min(last, key=lambda each: (each.original_loss, each.target_loss)).on_front
    alone = searched(model, tmp_path / "alone")
    assert all(each.original_loss is None for each in alone.finals)


def test_a_text_is_compared_too(model: Path, tmp_path: Path) -> None:
    words = "one two three four five six seven eight nine ten " * 4000
    plan = replace(PLAN, text=Text(source="words", content=words), shared_factors=True)
    result = searched(model, tmp_path / "out", plan)
    assert [comparison.fitness for comparison in result.holdout] == ["needle", "perplexity"]
    assert result.won
    needle, text = result.holdout
    assert {score.asked for score in text.scores} == {"text"}
    assert {score.asked for score in needle.scores} == {"spliced", "whole"}


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
    again = searched(model, tmp_path / "again")
    assert comparable(without_paths(result)) == comparable(without_paths(again))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_context": ORIGINAL, "screening_context": None}, "not above the original"),
        ({"fitness": "speed"}, "expected one of needle, perplexity"),
        ({"space": "ntk"}, "expected one of yarn, yarn-factor, base"),
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
        {"holdout_haystacks": 1},
        {"haystacks": 0},
        {"short_weight": 1.0},
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
