"""Runs carried out: in this process, in several, killed and taken up again."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ggufrope.backends.settings import RuntimeSettings
from ggufrope.errors import BackendError, MissingDependencyError, RequestError, StorageError
from ggufrope.evals.task import RulerSettings
from ggufrope.runs.driver import open_run
from ggufrope.runs.jobs import Selection
from ggufrope.runs.plan import RunPlan
from ggufrope.runs.store import MAX_CRASHES, RunStore

if TYPE_CHECKING:
    from types import ModuleType

    from ggufrope.evals.results import CellResult

Start = Callable[..., Path]
LONG_ROUND = "".join(f" {a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst")
"""150 words; a model that cannot look back so far cannot predict the second round."""


def results(folder: Path) -> tuple[CellResult, ...]:
    with RunStore(folder) as store:
        return store.results()


def states(folder: Path) -> list[str]:
    with RunStore(folder) as store:
        return [record.state for record in store.jobs()]


def test_a_run_measures_every_cell(start: Start, scripted: ModuleType) -> None:
    folder = start("forgets 256")
    seen: list[CellResult] = []
    scripted.work(folder, on_cell=seen.append)
    found = results(folder)
    assert states(folder) == ["done"]
    assert [(r.cell.context_tokens, r.cell.depth_percent) for r in found] == [
        (context, depth) for context in (256, 512) for depth in (0.0, 50.0, 100.0)
    ]
    assert [r.value("recall") for r in found] == [1.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    assert found[0].value("log_probability") == pytest.approx(math.log(0.9))
    assert all(r.prompt_tokens and r.prompt_tokens <= r.cell.context_tokens for r in found)
    assert Counter(r.cell for r in seen) == Counter(r.cell for r in found)


def test_one_load_serves_every_job_of_a_model(start: Start, scripted: ModuleType) -> None:
    folder = start("", " ", scalings=("file", "none"), kv=("f16", "q8_0"))
    scripted.work(folder)
    assert scripted.opened == ["model-0.gguf", "model-1.gguf"]
    with RunStore(folder) as store:
        assert [len(model.sha256 or "") for model in store.models()] == [64, 64]


def test_finished_jobs_are_not_done_again(start: Start, scripted: ModuleType) -> None:
    folder = start("")
    scripted.work(folder)
    before = results(folder)
    scripted.work(folder)
    assert scripted.opened == ["model-0.gguf"]
    assert results(folder) == before


def test_a_cache_type_this_build_lacks_is_a_cell_with_a_reason(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("refuses q4_0", kv=("f16", "q4_0"))
    scripted.work(folder)
    found = results(folder)
    assert [r.status for r in found] == ["ok"] * 6 + ["unsupported"] * 6
    assert found[-1].reason == "this build cannot run q4_0"


def test_a_failed_batch_is_an_error_and_the_run_goes_on(start: Start, scripted: ModuleType) -> None:
    folder = start("fails 300", kv=("f16", "q8_0"))
    scripted.work(folder)
    assert [r.status for r in results(folder)] == (["ok"] * 3 + ["error"] * 3) * 2
    assert results(folder)[3].reason == "the batch of 512 tokens failed"


def test_failed_cells_can_be_retried(start: Start, scripted: ModuleType) -> None:
    folder = start("fails 300")
    scripted.work(folder)
    repaired = folder.parent / "repaired.gguf"
    repaired.write_text("")
    with RunStore(folder) as store:
        assert store.retry_failed() == 1
        assert len(store.results()) == 3
    scripted.work(folder, lambda path, runtime: scripted.open_model(repaired, runtime))
    assert [r.status for r in results(folder)] == ["ok"] * 6
    with RunStore(folder) as store:
        assert store.retry_failed() == 0


def test_a_job_that_cannot_be_carried_out_has_an_error_in_every_cell(
    start: Start, scripted: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("")
    monkeypatch.setattr("ggufrope.runs.driver._read_texts", lambda plan: None)
    folder = start("", haystack=_text_haystack(text))
    scripted.work(folder)
    found = results(folder)
    assert states(folder) == ["failed"]
    assert len(found) == 6
    assert {r.status for r in found} == {"error"}
    assert "the text is empty" in str(found[0].reason)


@pytest.mark.parametrize(
    ("setting", "content", "words"),
    [
        ("haystack", b" ", "the text is empty"),
        ("text", b"\xff\xfe", "not UTF-8 text"),
        ("ruler", b"{}", "not a SQuAD file"),
        ("text", None, "a folder, though the plan names it as a file"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_before_there_is_a_run(
    setting: str, content: bytes | None, words: str, start: Start, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.mkdir() if content is None else text.write_bytes(content)
    cases: dict[str, dict[str, Any]] = {
        "haystack": {"haystack": _text_haystack(text)},
        "text": {"text": str(text), "tasks": ("perplexity",)},
        "ruler": {"ruler": RulerSettings(squad=str(text)), "tasks": ("ruler",)},
    }
    with pytest.raises((RequestError, StorageError), match=words):
        start("", **cases[setting])
    assert not list(tmp_path.rglob("run.sqlite"))


def test_text_tasks_compare_every_setting_with_its_base(
    start: Start, scripted: ModuleType, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(LONG_ROUND * 5)
    folder = start(
        "forgets 100 none",
        tasks=("perplexity", "divergence", "short-context"),
        scalings=("file", "none"),
        kv=("f16", "q8_0"),
        text=str(text),
    )
    scripted.work(folder)
    found = {
        (r.cell.scaling, r.cell.kv, r.cell.task, r.cell.context_tokens): r for r in results(folder)
    }
    clear = found["file", "f16", "perplexity", 512]
    lost = found["none", "f16", "perplexity", 512]
    assert clear.value("chunks") == 1
    assert clear.value("perplexity") == pytest.approx(1.11, abs=0.01)
    assert (lost.value("perplexity") or 0) > 1000
    assert dict(clear.notes)["text"] == "text.txt"
    assert len(clear.curves[0].points) == 16
    assert ("file", "f16", "divergence", 256) not in found
    assert found["file", "q8_0", "divergence", 256].value("mean_divergence") == pytest.approx(0)
    assert (found["none", "f16", "divergence", 512].value("mean_divergence") or 0) > 0.01
    assert found["none", "f16", "divergence", 512].value("delta_p_p1") is not None
    assert dict(found["none", "f16", "divergence", 512].notes)["base"] == "file · f16"
    short = found["none", "f16", "short-context", 512]
    assert short.value("base_recall") == 1.0


def test_a_text_too_short_for_one_context_fails_only_that_context(
    start: Start, scripted: ModuleType, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(LONG_ROUND * 2)
    folder = start("", tasks=("perplexity", "divergence"), kv=("f16", "q8_0"), text=str(text))
    scripted.work(folder)
    found = {(r.cell.kv, r.cell.task, r.cell.context_tokens): r for r in results(folder)}
    assert found["f16", "perplexity", 256].status == "ok"
    for task in ("perplexity", "divergence"):
        short = found["q8_0", task, 512]
        assert short.status == "error"
        assert "the text text.txt is too short: 512 tokens are needed, it has 3" in str(
            short.reason
        )


def _text_haystack(path: Path) -> object:
    from ggufrope.evals.task import Haystack

    return Haystack(kind="text", file=str(path))


def test_a_missing_model_file_fails_only_its_own_jobs(start: Start, scripted: ModuleType) -> None:
    folder = start("", " ")
    (folder.parent / "model-0.gguf").unlink()
    scripted.work(folder)
    assert states(folder) == ["failed", "done"]
    with RunStore(folder) as store:
        assert [model.sha256 is None for model in store.models()] == [True, False]


def test_a_bug_in_a_job_is_recorded_with_its_place(start: Start, scripted: ModuleType) -> None:
    folder = start("sleeps soon")
    scripted.work(folder)
    reason = str(results(folder)[0].reason)
    assert reason.startswith("unexpected ValueError at scripted_model.py:")


def test_a_missing_dependency_ends_the_run_and_leaves_the_job_pending(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("")
    with pytest.raises(MissingDependencyError, match="pip install"):
        scripted.work(folder, scripted.open_nothing)
    assert states(folder) == ["pending"]


def test_a_package_that_a_task_needs_is_missed_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    plan = RunPlan(models=("a.gguf",), contexts=(256,), tasks=("tool-call",))
    with pytest.raises(MissingDependencyError, match="pip install jsonschema"):
        open_run(plan, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_shard_does_its_share_only(start: Start, scripted: ModuleType) -> None:
    folder = start("", kv=("f16", "q8_0", "q4_0"))
    scripted.work(folder, selection=Selection(shard=2, shards=3))
    assert {r.cell.kv for r in results(folder)} == {"q8_0"}
    assert states(folder) == ["pending", "done", "pending"]


def test_worker_processes_share_a_run_and_do_nothing_twice(
    start: Start, scripted: ModuleType
) -> None:
    kinds = ("f32", "f16", "q8_0", "q5_0", "q4_0", "q4_1")
    runtime = RuntimeSettings(devices=("0", "1"))
    folder = start("sleeps 0.02", kv=kinds, runtime=runtime)
    seen: list[CellResult] = []
    scripted.work_in_processes(folder, on_cell=seen.append)
    assert set(states(folder)) == {"done"}
    assert Counter(r.cell for r in seen) == Counter(r.cell for r in results(folder))
    assert len(seen) == 36
    with RunStore(folder) as store:
        devices = [dict(w.environment).get("CUDA_VISIBLE_DEVICES") for w in store.workers()]
        taken = Counter(record.worker for record in store.jobs())
        assert dict(store.workers()[0].environment)["llama.cpp"] == "scripted"
        assert [len(model.sha256 or "") for model in store.models()] == [64]
    assert sorted(map(str, devices)) == ["0", "1"]
    assert len(taken) == 2


def test_processes_measure_what_this_process_measures(start: Start, scripted: ModuleType) -> None:
    settings = {"tasks": ("needle", "ruler", "kv-cache"), "kv": ("f16", "q8_0")}
    here = start("forgets 256", folder="here", **settings)
    scripted.work(here)
    there = start("forgets 256", folder="there", **settings)
    scripted.work_in_processes(there)
    assert len(results(here)) > 40
    timeless = [[_timeless(result) for result in results(folder)] for folder in (here, there)]
    assert timeless[0] == timeless[1]


def _timeless(result: CellResult) -> CellResult:
    metrics = tuple(m for m in result.metrics if "second" not in m.name)
    return replace(result, elapsed_seconds=None, metrics=metrics)


def test_what_a_model_prints_goes_to_the_log(start: Start, scripted: ModuleType) -> None:
    folder = start("prints 256")
    scripted.work_in_processes(folder)
    assert [r.status for r in results(folder)] == ["ok"] * 6
    (log,) = (folder / "logs").iterdir()
    assert "llama.cpp: loaded" in log.read_text()


@pytest.mark.parametrize("name", ["SIGABRT", "SIGKILL", "SIGSEGV"])
def test_a_job_that_kills_its_worker_fails_alone(
    start: Start, scripted: ModuleType, name: str
) -> None:
    folder = start("", f"dies {name} 300", "")
    scripted.work_in_processes(folder)
    assert states(folder) == ["done", "failed", "done"]
    found = results(folder)
    assert [r.status for r in found] == ["ok"] * 9 + ["error"] * 3 + ["ok"] * 6
    memory = " (possibly out of memory)" if name == "SIGKILL" else ""
    assert found[9].reason == (
        f"worker killed by {name}{memory}; last log line: GGML_ASSERT(n_tokens > 0) failed"
    )


def test_a_job_that_runs_out_of_memory_fails_alone(start: Start, scripted: ModuleType) -> None:
    folder = start("hogs 300", "")
    scripted.work_in_processes(folder)
    assert states(folder) == ["failed", "done"]
    found = results(folder)
    assert [r.status for r in found] == ["ok"] * 3 + ["error"] * 3 + ["ok"] * 6
    assert found[3].reason == "out of memory"


def test_workers_that_cannot_work_end_the_run(start: Start, scripted: ModuleType) -> None:
    folder = start("")
    with pytest.raises(MissingDependencyError, match="pip install"):
        scripted.work_in_processes(folder, "scripted_model:open_nothing")
    assert states(folder) == ["pending"]
    with pytest.raises(RequestError, match=r"no opener 'scripted_model:open_none'"):
        scripted.work_in_processes(folder, "scripted_model:open_none")


def test_a_worker_that_cannot_start_ends_the_run(
    start: Start, scripted: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dies_at_once.py").write_text("import os; os.write(2, b'no GPU'); os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = start("")
    message = "a worker process could not start: worker killed by SIGABRT; last log line: no GPU"
    with pytest.raises(BackendError, match=message):
        scripted.work_in_processes(folder, "dies_at_once:open_model")
    assert states(folder) == ["pending"]


DRIVER = """
import sys
from pathlib import Path
from scripted_model import work, work_in_processes
(work if sys.argv[2] == "here" else work_in_processes)(Path(sys.argv[1]))
"""


def drive(folder: Path, where: str) -> subprocess.Popen[bytes]:
    """Carry out a run in another process, "here" in itself or in "processes" of its own."""
    return subprocess.Popen([sys.executable, "-c", DRIVER, folder, where], stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def workers_of(folder: Path) -> set[int]:
    """Process ids of the workers of a run that are alive: their log is their standard error."""
    logs = {str(log.resolve()) for log in (folder / "logs").glob("*.log")}
    alive = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str((process / "fd" / "2").readlink()) in logs:
                alive.add(int(process.name))
    return alive


SLOW = {"kv": ("f16", "q8_0"), "mode": "whole", "contexts": (256, 512, 768)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are found in /proc")
@pytest.mark.parametrize("where", ["here", "processes"])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_stopped_and_run_again_nothing_is_lost_or_redone(
    start: Start, scripted: ModuleType, where: str, name: str
) -> None:
    folder = start("sleeps 0.1", **SLOW)
    driver = drive(folder, where)
    wait_for(lambda: len(results(folder)) >= 4)
    assert len(workers_of(folder)) == (1 if where == "processes" else 0)
    driver.send_signal(getattr(signal, name))
    driver.communicate()
    assert driver.returncode == -getattr(signal, name)
    wait_for(lambda: not workers_of(folder), seconds=3)
    before = {result.cell: result for result in results(folder)}
    assert 4 <= len(before) < 18
    if name == "SIGINT":
        assert "running" not in states(folder)
    scripted.work(folder)
    after = {result.cell: result for result in results(folder)}
    assert len(after) == 18
    assert {cell: after[cell] for cell in before} == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are found in /proc")
def test_a_worker_that_does_not_listen_is_ended_all_the_same(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("sleeps 30")
    driver = drive(folder, "processes")
    wait_for(lambda: bool(workers_of(folder)) and states(folder) == ["running"])
    driver.send_signal(signal.SIGINT)
    wait_for(lambda: not workers_of(folder), seconds=5)
    driver.communicate()
    assert states(folder) == ["pending"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are found in /proc")
def test_a_worker_ends_when_no_job_is_left_for_it(start: Start, scripted: ModuleType) -> None:
    runtime = RuntimeSettings(devices=("0", "1"))
    folder = start("sleeps 0.7", "", mode="whole", runtime=runtime)
    driver = drive(folder, "processes")
    wait_for(lambda: states(folder) == ["running", "done"])
    wait_for(lambda: len(workers_of(folder)) == 1, seconds=2)
    assert states(folder) == ["running", "done"]
    driver.communicate()
    assert driver.returncode == 0
    assert states(folder) == ["done", "done"]


def test_a_job_that_keeps_killing_its_process_is_abandoned(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("dies SIGKILL 300")
    for _ in range(MAX_CRASHES):
        driver = drive(folder, "here")
        driver.communicate()
        assert driver.returncode == -signal.SIGKILL
    scripted.work(folder)
    assert states(folder) == ["failed"]
    assert [r.status for r in results(folder)] == ["ok"] * 3 + ["error"] * 3
    assert results(folder)[-1].reason == "abandoned after 3 worker crashes"


def test_the_environment_names_no_one(start: Start, scripted: ModuleType) -> None:
    folder = start("")
    scripted.work(folder)
    with RunStore(folder) as store:
        (worker,) = store.workers()
    environment = dict(worker.environment)
    assert environment["llama.cpp"] == "scripted"
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert os.environ.get("HOME", "/nowhere") not in " ".join(environment.values())


def _answers(found: tuple[CellResult, ...], **at: object) -> list[CellResult]:
    return [r for r in found if all(getattr(r.cell, name) == value for name, value in at.items())]


def test_what_f16_answers_none_of_is_not_asked_of_other_caches(
    start: Start, scripted: ModuleType
) -> None:
    """The model answers no puzzle; the divergence and the needles of the pairs are measured."""
    folder = start("", tasks=("kv",), kv=("f16", "q8_0"), contexts=(512, 1024), samples=2)
    seen: list[CellResult] = []
    scripted.work(folder, on_cell=seen.append)
    found = results(folder)
    assert set(states(folder)) == {"done"}
    assert len(seen) == len(found)
    for task in ("arithmetic", "graph-walk", "code-bug"):
        of_f16 = _answers(found, task=task, kv="f16", control=False)
        answered = {
            length: sum(r.value("exact") or 0 for r in of_f16 if r.cell.context_tokens == length)
            for length in (512, 1024)
        }
        others = _answers(found, task=task, kv="q8_0")
        assert others
        for result in others:
            assert result.is_needless == (answered[result.cell.context_tokens] == 0)
    assert {r.status for r in _answers(found, task="needle", kv="q8_0")} == {"ok"}


@pytest.mark.parametrize("how", ["named", "no f16", "errors"])
def test_caches_are_asked_where_f16_decides_nothing(
    start: Start, scripted: ModuleType, how: str
) -> None:
    tasks = ("kv", "graph-walk") if how == "named" else ("kv",)
    script = "fails 600" if how == "errors" else ""
    folder = start(script, tasks=tasks, kv=("f16", "q8_0"), contexts=(1024,), samples=2)
    only = ("task=graph-walk", *(("kv=q8_0",) if how == "no f16" else ()))
    scripted.work(folder, selection=Selection(only=only))
    others = _answers(results(folder), task="graph-walk", kv="q8_0")
    assert len(others) == 2
    assert not any(result.is_needless for result in others)
