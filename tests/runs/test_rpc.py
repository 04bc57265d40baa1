"""Runs on RPC servers, in worker processes: one that dies ends its job, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ggufrope.backends.settings import RuntimeSettings
from ggufrope.errors import RequestError
from ggufrope.runs.driver import ProcessTransport, drive, open_run
from ggufrope.runs.plan import RunPlan, format_plan, parse_plan

pytestmark = pytest.mark.llama

if TYPE_CHECKING:
    from ggufrope.evals.results import CellResult
    from tests.conftest import RpcServer


def plan(nano: Path, *servers: str, **runtime: object) -> RunPlan:
    return RunPlan(
        models=(str(nano),),
        contexts=(128, 256),
        tasks=("perplexity",),
        scalings=("none", "yarn"),
        runtime=RuntimeSettings(rpc=servers, threads=1, **runtime),  # type: ignore[arg-type]
    )


@pytest.mark.usefixtures("only_cpu")
@pytest.mark.parametrize("offload_kqv", [True, False])
def test_a_run_on_servers_measures_what_one_on_the_cpu_does(
    offload_kqv: bool, nano: Path, two_servers: tuple[str, str], tmp_path: Path
) -> None:
    found = []
    for servers in ((), two_servers):
        wanted = plan(nano, *servers, offload_kqv=offload_kqv, gpu_layers="auto")
        with open_run(wanted, tmp_path / str(len(servers))) as store:
            drive(store, ProcessTransport())
            found.append({r.cell: r.value("nll") for r in store.results()})
            worker = dict(store.workers()[0].environment)
    assert len(found[0]) == 4
    assert found[1] == {cell: pytest.approx(nll, abs=1e-3) for cell, nll in found[0].items()}
    assert worker["layers on GPU"] == "3 of 3"
    on_devices = [worker[name] for name in worker if name.startswith("RPC")]
    assert [text.split(", ")[0] for text in on_devices] == [f"RPC server {s}" for s in two_servers]
    assert not any(" 0 bytes of it weights" in text for text in on_devices)


def test_a_server_that_dies_ends_its_job_and_not_the_run(
    start_server: Callable[..., RpcServer], nano: Path, tmp_path: Path
) -> None:
    server = start_server()
    seen: list[CellResult] = []

    def after_the_first(result: CellResult) -> None:
        seen.append(result)
        server.kill()

    with open_run(plan(nano, server.address), tmp_path / "run") as store:
        drive(store, ProcessTransport(), on_cell=after_the_first)
        reasons = [record.reason or "" for record in store.jobs()]
        results = store.results()
    assert seen[0].status == "ok"
    assert "Remote RPC server crashed" in reasons[0]
    assert f"RPC server {server.address}: no connection" in reasons[1]
    assert [result.status for result in results].count("error") == 3
    restarted = start_server()
    assert restarted.address != server.address


def test_servers_are_part_of_a_plan() -> None:
    text = 'models = ["a.gguf"]\ncontexts = [256]\n[runtime]\nrpc = ["a:50052", "b:50052"]\n'
    wanted = parse_plan(text)
    assert wanted.runtime.rpc == ("a:50052", "b:50052")
    assert parse_plan(format_plan(wanted)) == wanted


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ('rpc = ["a:50052", "a:50052"]', "`rpc` has a:50052 more than once"),
        ('rpc = ["a"]', "`rpc` 'a': expected HOST:PORT"),
        ('rpc = ["a:1"]\ndevices = ["0", "1"]', "`rpc` is for one worker"),
    ],
)
def test_a_plan_says_what_is_wrong_with_its_servers(runtime: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        parse_plan(f'models = ["a.gguf"]\ncontexts = [256]\n[runtime]\n{runtime}\n')
