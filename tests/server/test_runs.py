"""Runs through a server: stored, resumed, and judged as those of a file are; a fault is a cell."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from time import sleep
from typing import Any

import httpx
import pytest

from ggufrope import RunPlan, RunReport, RuntimeSettings, run
from ggufrope.errors import RequestError
from ggufrope.evals.thresholds import Thresholds
from ggufrope.report.conclusion import conclude
from ggufrope.report.html import to_html
from ggufrope.report.overview import to_markdown
from ggufrope.runs.driver import InlineTransport, drive, open_run
from ggufrope.runs.plan import format_plan, parse_plan
from ggufrope.runs.store import RunStore
from tests.server.standin import DROPPED, StandIn, serving

Fault = Callable[[httpx.Request], httpx.Response]


def plan_for(address: str, **changes: Any) -> RunPlan:
    settings: dict[str, Any] = {
        "contexts": (512,),
        "depths": 3,
        "samples": 2,
        "mode": "whole",
        "runtime": RuntimeSettings(server=address),
        **changes,
    }
    return RunPlan(**settings)


def reasons(report: RunReport) -> list[str | None]:
    return [cell.reason for cell in report.cells]


def test_a_run_through_a_server_is_stored_and_judged(tmp_path: Path) -> None:
    with serving(StandIn("llama-server", n_ctx=1024)) as address:
        plan = plan_for(address, contexts=(512, 1024), mode="spliced", samples=12)
        report = run(plan, tmp_path / "run")
    (record,) = report.models
    assert (record.file.name, record.sha256) == ("tiny", None)
    assert {(c.cell.scaling, c.cell.kv, c.cell.method) for c in report.cells} == {
        ("as served", "as served", "whole")
    }
    assert report.passed, reasons(report)
    assert conclude(report).headline == "as served: holds to 1024 tokens"
    skipped = {c.reason for c in report.cells if c.status == "skipped"}
    assert skipped == {"decided without it"}
    details = dict(report.workers[0].environment)
    assert details["server"] == "llama-server"
    assert details["server context"] == "1024"
    assert "the RoPE flags" in details["not given by the server"]
    for text in (to_html(report), to_markdown(report)):
        assert "as served" in text


def test_a_longer_context_than_is_served_is_an_error_of_those_cells(tmp_path: Path) -> None:
    with serving(StandIn("LM Studio", n_ctx=700, beyond="cut start")) as address:
        report = run(plan_for(address, contexts=(512, 2048), format="completion"), tmp_path / "run")
    of = {n: [c for c in report.cells if c.cell.context_tokens == n] for n in (512, 2048)}
    assert all(cell.status == "ok" for cell in of[512]), reasons(report)
    assert all("it cut the prompt" in (cell.reason or "") for cell in of[2048])
    assert not report.passed


def test_when_two_prompts_were_cut_alike_no_longer_ones_are_sent(tmp_path: Path) -> None:
    server = StandIn("Ollama", n_ctx=700, beyond="cut start")
    with serving(server) as address:
        report = run(plan_for(address, contexts=(2048,)), tmp_path / "run")
    assert {cell.status for cell in report.cells} == {"error"}
    generated = [r for r in server.requests if r.url.path == "/api/generate"]
    assert len(generated) == 2 + 2 + 2  # two times two for the length of tokens


def status(code: int, **more: Any) -> Fault:
    return lambda request: httpx.Response(code, **more)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(500, json={"error": {"message": "CUDA out of memory"}}), "CUDA out of memory"),
        (status(200, html="<html>proxy</html>"), "an HTML page"),
        (status(200, json={"choices": []}), "the answer has no text"),
        (
            status(200, json={"choices": [{"text": "7"}], "usage": {"prompt_tokens": 9}}),
            "counts 9 tokens of a prompt of",
        ),
        (
            status(200, json={"choices": [{"text": "7"}], "usage": {"prompt_tokens": 9999}}),
            "counts 9999 tokens of a prompt of",
        ),
    ],
)
def test_a_fault_is_the_reason_of_one_cell_and_the_run_goes_on(
    fault: Fault, reason: str, tmp_path: Path
) -> None:
    server = StandIn("vLLM", faults={2: fault})
    with serving(server) as address:
        plan = plan_for(address, format="completion")
        report = run(plan, tmp_path / "run")
        failed = [cell for cell in report.cells if cell.status != "ok"]
        assert len(failed) == 1
        assert reason in (failed[0].reason or "")
        with open_run(plan, tmp_path / "run") as store:
            store.retry_failed()
        again = run(plan, tmp_path / "run")
    assert all(cell.status == "ok" for cell in again.cells)
    assert server.generations == len(again.cells) + 1


def test_a_count_that_is_far_too_high_is_not_believed(tmp_path: Path) -> None:
    server = StandIn("OpenAI", count=lambda tokens: tokens if tokens < 400 else 9 * tokens)
    with serving(server) as address:
        report = run(plan_for(address, contexts=(1024,)), tmp_path / "run")
    assert all("its count is wrong" in (reason or "") for reason in reasons(report))


def test_a_stream_that_ends_early_is_the_reason_of_its_cell(tmp_path: Path) -> None:
    half = status(200, text='data: {"content": "7"}\n\n')
    with serving(StandIn("llama-server", faults={3: half})) as address:
        report = run(plan_for(address), tmp_path / "run")
    assert [r for r in reasons(report) if r] == [f"{address}/completion: the stream ended early"]


def test_a_connection_that_is_dropped_is_made_again(tmp_path: Path) -> None:
    server = StandIn("llama-server", faults={2: status(DROPPED)})
    with serving(server) as address:
        report = run(plan_for(address), tmp_path / "run")
    assert all(cell.status == "ok" for cell in report.cells), reasons(report)


def test_a_server_that_comes_back_as_another_is_not_mixed_in(tmp_path: Path) -> None:
    server = StandIn("llama-server", n_ctx=2048)

    def restart(request: httpx.Request) -> httpx.Response:
        server.n_ctx = 1024
        return httpx.Response(DROPPED)

    server._faults[2] = restart
    with serving(server) as address:
        report = run(plan_for(address), tmp_path / "run")
        assert [cell.status for cell in report.cells].count("ok") == 1
        assert any("context tokens 2048 → 1024" in (reason or "") for reason in reasons(report))
        with pytest.raises(RequestError, match="holds a run of other model files: tiny"):
            run(plan_for(address), tmp_path / "run")


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    server = StandIn("llama-server")
    with serving(server) as address:
        plan, done = plan_for(address), []

        def stop(result: Any) -> None:
            done.append(result)
            if len(done) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path / "run", on_cell=stop)
        patient = replace(plan, runtime=replace(plan.runtime, timeout_seconds=60.0))
        report = run(patient, tmp_path / "run")
    assert len(report.cells) == 6
    assert server.generations == 6


def test_a_run_in_worker_processes(tmp_path: Path) -> None:
    from ggufrope.runs.driver import ProcessTransport

    with serving(StandIn("llama-server")) as address:
        report = run(plan_for(address), tmp_path / "run", transport=ProcessTransport())
    assert [cell.value("recall") for cell in report.cells] == [1.0] * 6


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupt_does_not_wait_for_prompts_that_are_under_way(tmp_path: Path) -> None:
    begun = Event()

    def endless(request: httpx.Request) -> httpx.Response:
        begun.set()
        sleep(20)
        return httpx.Response(500)

    server = StandIn("llama-server", slots=2, faults=dict.fromkeys(range(3, 9), endless))
    code = "from ggufrope_cli.__main__ import start; start()"
    with serving(server) as address:
        words = ["validate", "--server", address, "--ctx", "512", "--out", str(tmp_path / "run")]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
        )
        assert begun.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=15) == 130
    with RunStore(tmp_path / "run") as store:
        assert [result.status for result in store.results()] == ["ok", "ok"]


def test_neither_llama_cpp_python_nor_a_compiler_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['llama_cpp'] = None\n"
        "from ggufrope_cli.__main__ import start\n"
        "start()"
    )
    options = ["--ctx", "512", "--depths", "1", "--samples", "35", "--out", str(tmp_path / "run")]
    with serving(StandIn("llama-server")) as address:
        for words in (["validate", *options], ["check"]):
            command = [sys.executable, "-c", code, words[0], "--server", address, *words[1:]]
            done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr


def test_several_models_of_a_server_are_compared(tmp_path: Path) -> None:
    server = StandIn("OpenAI")
    both = {"data": [{"id": "tiny"}, {"id": "large"}]}
    server.tells["/v1/models"] = lambda request: httpx.Response(200, json=both)
    with serving(server) as address:
        plan = plan_for(address, models=("tiny", "large"), format="completion")
        report = run(plan, tmp_path / "run")
    assert [model.file.name for model in report.models] == ["tiny", "large"]
    assert {cell.cell.model for cell in report.cells} == {"tiny", "large"}
    (decide,) = conclude(report).decide
    assert decide.startswith("tiny · as served · as served, large · as served · as served: ")


def test_credentials_are_nowhere_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGUFROPE_API_KEY", "sk-secret")
    monkeypatch.setenv("GGUFROPE_SERVER_LOGIN", "")
    monkeypatch.setenv("LLAMA_API_KEY", "sk-secret")
    monkeypatch.setenv("LLAMA_ARG_THREADS", "3")
    server = StandIn("llama-server")
    with serving(server) as address:
        report = run(plan_for(address), tmp_path / "run")
    assert {r.headers["authorization"] for r in server.requests} == {"Bearer sk-secret"}
    stored = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(stored) > 1
    assert not any(b"secret" in data for data in stored)
    assert "secret" not in repr(report)
    assert "LLAMA_ARG_THREADS" in repr(report)


def test_a_plan_with_a_server_is_written_and_read_back() -> None:
    plan = plan_for("http://localhost:8080", models=("a",))
    assert parse_plan(format_plan(plan)) == plan
    text = 'contexts = [512]\n[runtime]\nserver = "http://localhost:8080"\n'
    assert parse_plan(text).models == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scalings": ("yarn",)}, "a server scales as it was started"),
        ({"kv": ("q8_0",)}, "a server scales as it was started"),
        ({"tasks": ("perplexity", "needle")}, "`tasks` perplexity: a server gives no logits"),
        ({"mode": "spliced", "whole_prompts": 0}, "`whole_prompts` 0"),
        ({"runtime": RuntimeSettings(timeout_seconds=3.0)}, "`timeout_seconds` is for a `server`"),
        (
            {"runtime": RuntimeSettings(server="http://a.test", threads=2)},
            "`threads` is for models loaded here",
        ),
        ({"runtime": RuntimeSettings(server="http://a.test", parallel=0)}, "`parallel` 0 must be"),
        ({"runtime": RuntimeSettings(server="http://me:pw@a.test")}, "keeps no credentials"),
        ({"runtime": RuntimeSettings()}, "`models` is empty"),
    ],
)
def test_what_a_server_cannot_do_is_refused_in_the_plan(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        plan_for("http://localhost:8080", **changes)


@pytest.mark.parametrize("kind", ["vLLM", "OpenAI", "Ollama"])
def test_a_rank_is_not_required_of_a_server_that_gives_none(kind: Any, tmp_path: Path) -> None:
    with serving(StandIn(kind)) as address:
        plan = plan_for(address, distractors=3, thresholds=Thresholds(top_ranked=0.5))
        with pytest.raises(RequestError, match="`top_ranked` needs log-probabilities"):
            run(plan, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_driver_takes_the_opener_that_it_is_given(tmp_path: Path) -> None:
    """As a script does that has its own connection to a server."""
    from ggufrope.backends.served import ServedModel

    server = StandIn("llama-server")
    with serving(server) as address:
        plan = plan_for(address)
        with open_run(plan, tmp_path / "run") as store:
            drive(store, InlineTransport(lambda path, settings: ServedModel(server.open())))
    with RunStore(tmp_path / "run") as store:
        assert [cell.status for cell in store.results()] == ["ok"] * 6
