"""The damage tasks: one prefill, puzzles at its end, and a control in a short context."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from ggufrope.evals.damage import CONTROL_TOKENS, DAMAGE, SAMPLES, Worlds
from ggufrope.evals.puzzles.tasks import DAMAGE_TASKS
from ggufrope.evals.registry import TASKS
from ggufrope.evals.task import ASKING, TaskName, TaskSettings
from ggufrope.runs.jobs import expand
from ggufrope.runs.models import ModelFile
from ggufrope.runs.plan import RunPlan
from ggufrope.runtime.context import Context
from ggufrope.runtime.fake import FakeModel
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings
from tests.evals.bench import Bench, refusing
from tests.server.standin import StandIn

EVERY = pytest.mark.parametrize("task", DAMAGE_TASKS)


@EVERY
def test_every_puzzle_of_every_length_is_answered_or_graded(task: TaskName) -> None:
    bench = Bench()
    results = bench.run(DAMAGE[task], contexts=(2048, 1024))
    assert len(results) == 2 * SAMPLES
    for result in results:
        assert result.status == "ok"
        assert result.value("exact") in (0.0, 1.0)
        assert 0 < (result.prompt_tokens or 0) <= result.cell.context_tokens
        assert {"asked", "answer", "format"} <= {name for name, _ in result.notes}
    generated = [result for result in results if "output" in dict(result.notes)]
    assert len(generated) == {"arithmetic": 16, "tool-call": 32, "graph-walk": 32}.get(task, 0)


@EVERY
@pytest.mark.parametrize("length", [768, 1024, 4096])
def test_a_haystack_holds_its_texts_whole_and_leaves_room_for_asking(
    task: TaskName, length: int
) -> None:
    model = FakeModel()
    worlds = Worlds(model, task, TaskSettings(), seed=3)
    assert worlds.least <= 768
    made = list(worlds.of(length))
    samples = [each.question.point.sample for world in made for each in world.asked]
    assert samples == list(range(SAMPLES))
    for world in made:
        assert len(world.trunk) + max(each.tokens for each in world.asked) <= length + 400
        assert all(
            len(world.trunk) + len(each.question.branch.prompt) + each.puzzle.output_tokens
            <= length
            for each in world.asked
        )
    text = "".join(model.detokenize(world.trunk) for world in made)
    for draft in worlds._drafts:
        places = [text.find(piece.strip()) for piece in draft.group.pieces]
        assert -1 not in places
        if task == "ordered-copies":
            assert places == sorted(places)
    if length == 4096:
        assert len(made) == 1


def test_texts_are_spread_over_the_whole_haystack() -> None:
    model = FakeModel()
    worlds = Worlds(model, "graph-walk", TaskSettings(), seed=0)
    (world,) = worlds.of(8192)
    text = model.detokenize(world.trunk)
    places = [text.find(piece) / len(text) for piece in worlds._drafts[0].group.pieces]
    assert min(places) < 0.1
    assert max(places) > 0.9


@EVERY
def test_a_length_without_room_is_skipped_with_what_it_takes(task: TaskName) -> None:
    bench = Bench()
    results = bench.run(DAMAGE[task], contexts=(48, 2048), samples=2)
    skipped = [result for result in results if result.cell.context_tokens == 48]
    assert len(skipped) == 2
    assert {result.status for result in skipped} == {"skipped"}
    assert all("48 tokens are too few" in (result.reason or "") for result in skipped)
    assert {r.status for r in results if r.cell.context_tokens == 2048} == {"ok"}


def test_results_that_are_there_are_not_measured_again() -> None:
    bench = Bench()
    before = bench.run(DAMAGE["graph-walk"], contexts=(1024,))
    again = bench.run(DAMAGE["graph-walk"], contexts=(1024,), done=before[:10])
    assert again == before[10:]


@EVERY
def test_a_failure_is_the_reason_of_its_cells_alone(task: TaskName) -> None:
    bench = Bench(failing_calls=(3,))
    results = bench.run(DAMAGE[task], contexts=(1024,))
    failed = [result for result in results if result.status == "error"]
    assert 0 < len(failed) < SAMPLES or task in ("code-bug", "ordered-copies")
    assert all("call 3 is one of failing_calls" in (result.reason or "") for result in failed)
    refused = bench.run(DAMAGE[task], contexts=(1024,), open_context=refusing("too large"))
    assert {(result.status, result.reason) for result in refused} == {("error", "too large")}


@pytest.mark.parametrize(
    ("task", "form"),
    [
        ("tool-call", "{}"),
        ("tool-call", "```json\n{}\n```"),
        ("graph-walk", "{}"),
        ("graph-walk", "Nodes: {}"),
        ("graph-walk", "**Nodes:** {}"),
    ],
)
def test_an_answer_counts_that_a_chat_begins_by_itself(task: TaskName, form: str) -> None:
    """No API of a chat takes the beginning of an answer."""
    server = StandIn("OpenAI", n_ctx=8192)
    opened = server.open()
    world = next(Worlds(opened, task, TaskSettings(samples=1), seed=0).of(2048))
    said = form.replace("{}", world.asked[0].puzzle.answer)
    server.tells["/v1/chat/completions"] = lambda request: httpx.Response(
        200, json={"choices": [{"message": {"content": said}}]}
    )
    bench = Bench()
    bench.model = opened  # type: ignore[assignment]
    (result,) = bench.run(DAMAGE[task], contexts=(2048,), samples=1, open_context=opened.open)
    assert result.value("exact") == 1.0


def test_an_append_only_context_is_asked_at_its_end() -> None:
    bench = Bench(append_only="the model keeps a recurrent state")
    results = bench.run(DAMAGE["arithmetic"], contexts=(1024,))
    assert {result.status for result in results} == {"ok"}


def test_the_control_is_short_and_unscaled() -> None:
    plan = RunPlan(
        models=("m.gguf",), contexts=(8192, 16384), tasks=DAMAGE_TASKS, scalings=("yarn",)
    )
    file = ModelFile(
        name="m", path="m.gguf", file_size=1, header_sha256="0" * 64, native_context=8192
    )
    controls = [cell for job in expand(plan, (file,)) for cell in job.cells if cell.control]
    assert len(controls) == SAMPLES * len(DAMAGE_TASKS)
    assert {(c.context_tokens, c.kv, c.scaling) for c in controls} == {
        (CONTROL_TOKENS, "f16", "file")
    }


def test_every_task_is_registered_and_asks() -> None:
    assert set(DAMAGE_TASKS) <= set(TASKS)
    assert set(DAMAGE_TASKS) <= ASKING


@pytest.mark.llama
@pytest.mark.parametrize("task", ["code-bug", "graph-walk"])
def test_real_contexts_score_and_generate(task: TaskName, nano: Path) -> None:
    bench = Bench()
    with Model.open(nano) as model:
        bench.model = model  # type: ignore[assignment]
        results = bench.run(
            DAMAGE[task],
            contexts=(768,),
            samples=4,
            open_context=lambda n: Context(model, ContextSettings(n_ctx=n, n_threads=1)),
        )
    assert [result.status for result in results] == ["ok"] * 4
    assert all(result.value("exact") is not None for result in results)
