"""Runs carried out: in this process, in several, killed and taken up again."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ggufrope.errors import MissingDependencyError, RequestError, StorageError
from ggufrope.runs.driver import Slot, run_in_processes, work
from ggufrope.runs.jobs import Selection
from ggufrope.runs.store import MAX_DEATHS, LifeLine, RunStore, is_alive

if TYPE_CHECKING:
    from types import ModuleType

    from ggufrope.evals.results import CellResult

Start = Callable[..., Path]
LONG_ROUND = "".join(f" {a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst")
"""150 words; who cannot look back so far cannot foretell its second round."""
OPENER = "scripted_subject:open_subject"


def results(folder: Path) -> tuple[CellResult, ...]:
    with RunStore(folder) as store:
        return store.results()


def states(folder: Path) -> list[str]:
    with RunStore(folder) as store:
        return [record.state for record in store.jobs()]


def test_a_run_measures_every_cell(start: Start, scripted: ModuleType) -> None:
    folder = start("forgets 256")
    seen: list[CellResult] = []
    work(folder, scripted.open_subject, on_cell=seen.append)
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
    work(folder, scripted.open_subject)
    assert scripted.opened == ["model-0.gguf", "model-1.gguf"]
    with RunStore(folder) as store:
        assert [len(model.sha256 or "") for model in store.models()] == [64, 64]


def test_what_was_done_is_not_done_again(start: Start, scripted: ModuleType) -> None:
    folder = start("")
    work(folder, scripted.open_subject)
    before = results(folder)
    work(folder, scripted.open_subject)
    assert scripted.opened == ["model-0.gguf"]
    assert results(folder) == before


def test_a_cache_type_this_build_lacks_is_a_cell_with_a_reason(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("refuses q4_0", kv=("f16", "q4_0"))
    work(folder, scripted.open_subject)
    found = results(folder)
    assert [r.status for r in found] == ["ok"] * 6 + ["unsupported"] * 6
    assert found[-1].reason == "this build cannot run q4_0"


def test_a_failed_batch_is_an_error_and_the_run_goes_on(start: Start, scripted: ModuleType) -> None:
    folder = start("fails 300", kv=("f16", "q8_0"))
    work(folder, scripted.open_subject)
    assert [r.status for r in results(folder)] == (["ok"] * 3 + ["error"] * 3) * 2
    assert results(folder)[3].reason == "the batch of 512 tokens failed"


def test_failed_cells_are_retried_when_asked(start: Start, scripted: ModuleType) -> None:
    folder = start("fails 300")
    work(folder, scripted.open_subject)
    with RunStore(folder) as store:
        Path(store.models()[0].file.path).write_text("")
        assert store.retry_failed() == 1
        assert len(store.results()) == 3
    work(folder, scripted.open_subject)
    assert [r.status for r in results(folder)] == ["ok"] * 6
    with RunStore(folder) as store:
        assert store.retry_failed() == 0


def test_a_job_that_cannot_be_carried_out_leaves_no_hole(
    start: Start, scripted: ModuleType, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("")
    folder = start("", haystack=_text_haystack(text))
    work(folder, scripted.open_subject)
    found = results(folder)
    assert states(folder) == ["failed"]
    assert len(found) == 6
    assert {r.status for r in found} == {"error"}
    assert "the text is empty" in str(found[0].reason)


def test_texts_are_read_by_every_setting_against_its_base(
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
    work(folder, scripted.open_subject)
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


def test_a_text_too_short_for_one_context_spares_the_others(
    start: Start, scripted: ModuleType, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(LONG_ROUND * 2)
    folder = start("", tasks=("perplexity", "divergence"), kv=("f16", "q8_0"), text=str(text))
    work(folder, scripted.open_subject)
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


def test_a_model_that_has_gone_fails_its_jobs_alone(start: Start, scripted: ModuleType) -> None:
    folder = start("", " ")
    (folder.parent / "model-0.gguf").unlink()
    work(folder, scripted.open_subject)
    assert states(folder) == ["failed", "done"]
    with RunStore(folder) as store:
        assert [model.sha256 is None for model in store.models()] == [True, False]


def test_a_bug_in_a_job_is_recorded_with_its_place(start: Start, scripted: ModuleType) -> None:
    folder = start("sleeps soon")
    work(folder, scripted.open_subject)
    reason = str(results(folder)[0].reason)
    assert reason.startswith("unexpected ValueError at scripted_subject.py:")


def test_a_missing_part_ends_the_run_and_leaves_the_job_free(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("")
    with pytest.raises(MissingDependencyError, match="pip install"):
        work(folder, scripted.open_nothing)
    assert states(folder) == ["pending"]


def test_a_shard_does_its_share_only(start: Start, scripted: ModuleType) -> None:
    folder = start("", kv=("f16", "q8_0", "q4_0"))
    work(folder, scripted.open_subject, selection=Selection(shard=2, shards=3))
    assert {r.cell.kv for r in results(folder)} == {"q8_0"}
    assert states(folder) == ["pending", "done", "pending"]


def test_a_folder_holds_one_run(start: Start) -> None:
    folder = start("")
    assert start("") == folder
    with pytest.raises(RequestError, match="holds another run"):
        start("", contexts=(256,))
    with pytest.raises(RequestError, match="its plan or its model files differ"):
        start("forgets 256")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no run here"):
        RunStore(tmp_path)
    (tmp_path / "run.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match="is not a database"):
        RunStore(tmp_path)


def test_an_unwritable_folder_is_refused(tmp_path: Path, start: Start) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match="cannot write the run there"):
        start("", folder="taken/run")


def test_a_life_line_is_free_when_its_holder_is_gone(tmp_path: Path) -> None:
    assert not is_alive(tmp_path, "w")
    with LifeLine(tmp_path, "w"):
        assert is_alive(tmp_path, "w")
    assert not is_alive(tmp_path, "w")


def test_worker_processes_share_a_run_and_do_nothing_twice(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("sleeps 0.02", kv=("f32", "f16", "q8_0", "q5_0", "q4_0", "q4_1"))
    seen: list[CellResult] = []
    slots = (Slot.on_gpu("0"), Slot.on_gpu("1"))
    run_in_processes(folder, OPENER, slots=slots, on_cell=seen.append)
    assert set(states(folder)) == {"done"}
    assert Counter(r.cell for r in seen) == Counter(r.cell for r in results(folder))
    assert len(seen) == 36
    with RunStore(folder) as store:
        devices = [dict(w.environment).get("CUDA_VISIBLE_DEVICES") for w in store.workers()]
        taken = Counter(record.worker for record in store.jobs())
    assert sorted(map(str, devices)) == ["0", "1"]
    assert len(taken) == 2


@pytest.mark.parametrize("name", ["SIGABRT", "SIGKILL", "SIGSEGV"])
def test_a_job_that_kills_its_process_fails_alone(
    start: Start, scripted: ModuleType, name: str
) -> None:
    folder = start("", f"dies {name} 300", "")
    run_in_processes(folder, OPENER)
    assert states(folder) == ["done", "failed", "done"]
    found = results(folder)
    assert [r.status for r in found] == ["ok"] * 9 + ["error"] * 3 + ["ok"] * 6
    assert name in str(found[9].reason)
    assert "GGML_ASSERT(n_tokens > 0) failed" in str(found[9].reason)


def test_a_job_that_runs_out_of_memory_fails_alone(start: Start, scripted: ModuleType) -> None:
    folder = start("hogs 300", "")
    run_in_processes(folder, OPENER)
    assert states(folder) == ["failed", "done"]
    found = results(folder)
    assert [r.status for r in found] == ["ok"] * 3 + ["error"] * 3 + ["ok"] * 6
    assert found[3].reason == "out of memory"


def test_workers_that_cannot_work_end_the_run(start: Start, scripted: ModuleType) -> None:
    with pytest.raises(MissingDependencyError, match="pip install"):
        run_in_processes(start(""), "scripted_subject:open_nothing")


PARENT = """
from pathlib import Path
from ggufrope.runs.driver import run_in_processes, work
from scripted_subject import open_subject
import sys
folder = Path(sys.argv[1])
if sys.argv[2] == "here":
    work(folder, open_subject)
else:
    run_in_processes(folder, "scripted_subject:open_subject")
"""


@pytest.mark.parametrize("where", ["here", "processes"])
def test_killed_and_run_again_nothing_is_lost_or_redone(
    start: Start, scripted: ModuleType, where: str
) -> None:
    folder = start("sleeps 0.1", kv=("f16", "q8_0"), mode="isolated", contexts=(256, 512, 768))
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(PARENT), str(folder), where])
    deadline = time.monotonic() + 60
    while len(results(folder)) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while _alive_workers(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    before = _bodies(folder)
    assert 4 <= len(before) < 18
    work(folder, scripted.open_subject)
    after = _bodies(folder)
    assert len(after) == 18
    assert {key: after[key] for key in before} == before


def _alive_workers(folder: Path) -> list[str]:
    lines = (folder / "workers").glob("*.alive")
    return [line.stem for line in lines if is_alive(folder / "workers", line.stem)]


def _bodies(folder: Path) -> dict[object, CellResult]:
    return {result.cell: result for result in results(folder)}


def test_a_job_that_keeps_killing_its_process_is_given_up(
    start: Start, scripted: ModuleType
) -> None:
    folder = start("dies SIGKILL 300")
    for _ in range(MAX_DEATHS):
        command = [sys.executable, "-c", textwrap.dedent(PARENT), str(folder), "here"]
        assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    work(folder, scripted.open_subject)
    assert states(folder) == ["failed"]
    assert [r.status for r in results(folder)] == ["ok"] * 3 + ["error"] * 3
    assert results(folder)[-1].reason == "3 processes died running this without a word"


def test_the_environment_names_no_one(start: Start, scripted: ModuleType) -> None:
    folder = start("")
    work(folder, scripted.open_subject)
    with RunStore(folder) as store:
        (worker,) = store.workers()
    environment = dict(worker.environment)
    assert environment["llama.cpp"] == "scripted"
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert os.environ.get("HOME", "/nowhere") not in " ".join(environment.values())
