"""--rpc: a model spread over RPC servers, from the command line."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import Call
from tests.cli.test_search import QUICK as SEARCH

pytestmark = pytest.mark.llama

if TYPE_CHECKING:
    from tests.conftest import RpcServer

ONE_JOB = ("--ctx", "128", "--tasks", "perplexity", "--no-control", "--threads", "1")
DEAD = "127.0.0.1:1"
"""Nobody listens there."""


def layers(answer: dict[str, object]) -> set[str]:
    """Return where the layers were, of each worker."""
    workers = answer["workers"]
    assert isinstance(workers, list)
    return {dict(worker["environment"])["layers on GPU"] for worker in workers}


@pytest.mark.parametrize(
    "command",
    [("validate",), ("compare", "--scaling", "none")],
    ids=["validate", "compare"],
)
def test_a_model_is_measured_on_servers(
    command: tuple[str, ...], cli: Call, nano: Path, two_servers: tuple[str, str]
) -> None:
    name, *more = command
    found = cli(name, nano, *more, *ONE_JOB, "--rpc", ",".join(two_servers), "--json").json
    plain = cli(name, nano, *more, *ONE_JOB, "--json").json
    assert layers(found) == {"3 of 3"}
    assert tuple(found["plan"]["runtime"]["rpc"]) == two_servers
    nll, expected = (
        [c["metrics"]["nll"]["value"] for c in each["cells"]] for each in (found, plain)
    )
    assert len(nll) >= 1
    assert nll == pytest.approx(expected, abs=1e-3)


def test_a_search_runs_on_servers(
    cli: Call, llama: Path, two_servers: tuple[str, str], tmp_path: Path
) -> None:
    outcome = cli("search", llama, *SEARCH, "--rpc", ",".join(two_servers), "--out", tmp_path / "s")
    assert outcome.code == 0
    assert "conclusion" in outcome.out


def test_the_servers_of_a_plan_are_replaced_by_those_of_the_command(
    cli: Call, nano: Path, two_servers: tuple[str, str], tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f'models = ["{nano}"]\ncontexts = [128]\ntasks = ["perplexity"]\n'
        f'[runtime]\nthreads = 1\nrpc = ["{DEAD}"]\n'
    )
    outcome = cli("run", plan, "--rpc", two_servers[0], "--out", tmp_path / "run", "--json")
    assert layers(outcome.json) == {"3 of 3"}


def test_doctor_shows_the_devices_of_servers(cli: Call, two_servers: tuple[str, str]) -> None:
    answer = cli("doctor", "--rpc", ",".join(two_servers), "--json").json
    assert answer["can_offload"] is True
    lent = [device for device in answer["devices"] if device["server"]]
    assert tuple(device["server"] for device in lent) == two_servers
    assert all(answer["free_bytes"][device["name"]] == 8 * 2**30 for device in lent)
    assert two_servers[0] in cli("doctor", "--rpc", two_servers[0]).out
    assert two_servers[0] not in cli("doctor").out


@pytest.mark.parametrize(
    "words",
    [
        ("validate", "MODEL", *ONE_JOB),
        ("compare", "MODEL", "--scaling", "none", *ONE_JOB),
        ("search", "MODEL", *SEARCH),
        ("doctor",),
        ("doctor", "--model", "MODEL"),
    ],
    ids=" ".join,
)
def test_a_dead_server_is_one_line_before_anything_is_measured(
    words: tuple[str, ...], cli: Call, nano: Path, two_servers: tuple[str, str]
) -> None:
    given = [nano if word == "MODEL" else word for word in words]
    outcome = cli(*given, "--rpc", f"{two_servers[0]},{DEAD}")
    assert outcome.code == 5
    assert outcome.err.splitlines()[-1].startswith(f"ggufrope: RPC server {DEAD}: no connection (")
    assert not Path("runs").exists()


@pytest.mark.parametrize("address", ["host", "host:port", "[::1]:50052", "a:1,a:1", ""])
def test_what_is_no_address_is_a_usage_error(address: str, cli: Call, nano: Path) -> None:
    outcome = cli("validate", nano, *ONE_JOB, "--rpc", address)
    assert outcome.code == 2
    assert "--rpc" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_server_that_is_lost_in_a_search_is_one_line(
    start_server: Callable[..., RpcServer], llama: Path, tmp_path: Path
) -> None:
    """A search is in the process that llama.cpp ends; what it has measured is kept."""
    server, out = start_server(), tmp_path / "search"
    command: list[str | Path] = [sys.executable, "-m", "ggufrope", "search", llama, *SEARCH]
    command += ["--candidates", "500"]
    command += ["--rpc", server.address, "--out", out]
    record, end = out / "search.jsonl", time.monotonic() + 240
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as searching:
        try:
            # The plan, and candidates.
            while not record.exists() or record.read_bytes().count(b"\n") < 3:
                assert searching.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            server.kill()
            _, said = searching.communicate(timeout=120)
        finally:
            searching.kill()
    assert searching.returncode == 5
    # Lost in a computation, or before the next model is opened.
    expected = r"ggufrope: (an RPC server is lost, and llama.cpp|RPC server [\d.:]+: no connection)"
    assert re.match(expected, said.splitlines()[-1])
