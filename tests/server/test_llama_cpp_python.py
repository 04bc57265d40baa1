"""llama-cpp-python's own server, for real: nano on loopback, through every part of the product."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from ggufrope import RunPlan, RuntimeSettings, run
from ggufrope.backends.opened import open_model
from ggufrope.backends.served import open_server
from ggufrope.container.ggml import KvTypes
from ggufrope.evals.needle_prompts import NeedleGrid, NeedlePlan
from ggufrope.patching.request import ScalingRequest
from ggufrope.server.served import measure_server

pytestmark = pytest.mark.llama

CONTEXT = 256
COMMAND = [sys.executable, "-c", "from ggufrope_cli.__main__ import start; start()"]


@pytest.fixture(scope="module")
def address(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of nano with a context of 256 tokens."""
    pytest.importorskip("llama_cpp.server.app", exc_type=ImportError)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    options = {"model": nano, "model_alias": "nano", "n_ctx": CONTEXT, "n_threads": 1, "port": port}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "llama_cpp.server", *words, "--host", "127.0.0.1"],
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False)
                break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def test_every_needle_is_answered_as_in_this_process(
    address: str, nano: Path, tmp_path: Path
) -> None:
    def plan(settings: RuntimeSettings, *models: str) -> RunPlan:
        return RunPlan(
            models=models,
            contexts=(CONTEXT,),
            depths=5,
            samples=2,
            mode="whole",
            control=False,
            format="completion",
            runtime=settings,
        )

    served = run(plan(RuntimeSettings(server=f"{address}/v1")), tmp_path / "served").cells
    local = run(plan(RuntimeSettings(threads=1), str(nano)), tmp_path / "here").cells
    assert [cell.status for cell in served] == ["ok"] * 10, [cell.reason for cell in served]
    assert [cell.value("recall") for cell in served] == [cell.value("recall") for cell in local]
    assert [dict(cell.notes)["answer"] for cell in served] == [
        dict(cell.notes)["answer"] for cell in local
    ]
    assert [cell.prompt_tokens for cell in served] == [cell.prompt_tokens for cell in local]


def test_what_is_generated_is_equal_to_the_token(address: str, nano: Path) -> None:
    depths = (0.0, 50.0, 100.0)
    plan = NeedlePlan(lengths=(CONTEXT - 16,), depths=depths, seed=3, format="completion")
    request, kv = ScalingRequest(scaling="file"), KvTypes.parse("f16")
    texts: list[list[str]] = []
    with (
        closing(open_server(RuntimeSettings(server=address))) as server,
        closing(open_model(nano, RuntimeSettings(threads=1))) as opened,
        closing(opened.contexts(request, kv, largest=CONTEXT)(CONTEXT)) as local,
    ):
        for model, context in ((server, server.open(CONTEXT)), (opened.model, local)):
            grid = NeedleGrid(model, plan)
            texts.append([])
            for point in plan.points:
                whole = grid.question(point).whole(grid.haystack(point.context_tokens))
                context.rewind(0)
                context.extend(whole.trunk)
                said = context.generate(whole.branch.prompt, max_tokens=16)
                texts[-1].append(model.detokenize(said))
    assert texts[0] == texts[1]
    assert all(texts[0])


@pytest.mark.parametrize(("asked", "behavior"), [(CONTEXT, "whole"), (1024, "refused")])
def test_the_context_is_measured_to_the_token(address: str, asked: int, behavior: str) -> None:
    with closing(open_server(RuntimeSettings(server=address))) as model:
        found = measure_server(model, asked)
    assert (found.behavior, found.serves, found.exact) == (behavior, CONTEXT, True)
    assert found.longest_prompt == CONTEXT - 1
    assert found.knows_start is True


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, cwd=folder)


def test_check_says_what_is_served(address: str, tmp_path: Path) -> None:
    short = command("check", "--server", address, "--ctx", "1k", folder=tmp_path)
    assert short.returncode == 1, short.stderr
    assert "asked 1024, serves 256: a longer prompt is refused" in short.stdout
    assert "not given by llama-cpp-python: log-probabilities" in " ".join(short.stdout.split())
    fits = command("check", "--server", address, "--ctx", "256", "--json", folder=tmp_path)
    assert fits.returncode == 0, fits.stderr
    found = json.loads(fits.stdout)
    assert found["schema"] == 1
    assert found["passed"] is True
    assert found["served"]["info"]["model"] == "nano"


def test_validate_says_what_holds(address: str, tmp_path: Path) -> None:
    words = ["--ctx", "256", "--format", "completion", "--samples", "12", "--depths", "3"]
    done = command("validate", "--server", address, *words, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass as served: holds to 256 tokens" in done.stdout
    assert "tokens to evaluate by the server" in done.stderr
    assert done.stderr.count("does not give log-probabilities") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    again = command("report", str(folder), "--json", folder=tmp_path)
    assert json.loads(again.stdout)["cells"][0]["cell"]["scaling"] == "as served"
