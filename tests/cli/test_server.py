"""Servers on the command line: what is said in words, and how a command exits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Call
from tests.server.standin import StandIn, serving


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, without a login in the environment before and after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GGUFROPE_SERVER_LOGIN", "")
    return tmp_path


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.usefixtures("elsewhere")
def test_check_says_what_is_dropped(cli: Call) -> None:
    with serving(StandIn("Ollama", n_ctx=700, beyond="cut start", shifts=True)) as address:
        outcome = cli("check", "--server", address, "--ctx", "4k")
    assert outcome.code == 1
    text = words(outcome.out)
    assert "✗ asked 4096, serves 700: the first 12.5" in text
    assert "KiB of your prompt are dropped without a word" in text
    assert "longest prompt 699 tokens, measured" in text
    assert "end of the context the oldest tokens are dropped to go on" in text
    assert "llama.rope.freq_base 500000.0" in text
    assert "not given by Ollama: log-probabilities (answers" in text


@pytest.mark.usefixtures("elsewhere")
def test_check_exits_0_where_all_is_served(cli: Call) -> None:
    with serving(StandIn("vLLM", n_ctx=2048)) as address:
        outcome = cli("check", "--server", address)
        asked = cli("check", "--server", address, "--ctx", "1k", "--json")
    assert outcome.code == 0
    assert "✓ asked 2048, serves it: 2047 tokens of a prompt are taken" in words(outcome.out)
    assert asked.json["served"]["asked"] == 1024
    assert asked.json["served"]["behavior"] == "whole"


@pytest.mark.usefixtures("elsewhere")
def test_validate_names_once_what_the_server_cannot_give(cli: Call) -> None:
    options = ("--ctx", "512", "--depths", "3", "--samples", "12", "--json")
    with serving(StandIn("LM Studio")) as address:
        outcome = cli("validate", "--server", f"{address}/v1", "--model", "tiny", *options)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("LM Studio, tiny, does not give log-probabilities") == 1
    assert "at most 18,144 tokens to evaluate by the server" in outcome.err
    assert outcome.json["plan"]["runtime"]["server"] == address
    assert outcome.json["plan"]["models"] == ["tiny"]


@pytest.mark.usefixtures("elsewhere")
def test_compare_compares_the_models_of_a_server(cli: Call) -> None:
    import httpx

    server = StandIn("OpenAI")
    both = {"data": [{"id": "tiny"}, {"id": "large"}]}
    server.tells["/v1/models"] = lambda request: httpx.Response(200, json=both)
    options = ("--ctx", "512", "--depths", "3", "--samples", "12")
    with serving(server) as address:
        models = ("--model", "tiny", "--model", "large")
        outcome = cli("compare", "--server", address, *models, *options)
    assert outcome.code == 0, outcome.err
    assert "tiny: as served: holds to 512 tokens; large: as served: holds" in words(outcome.out)


def test_a_login_in_the_address_is_used_and_not_shown(cli: Call, elsewhere: Path) -> None:
    server = StandIn("llama-server")
    options = ("--ctx", "512", "--depths", "1", "--samples", "1", "--mode", "whole")
    with serving(server) as address:
        login = address.replace("http://", "http://me:s3cret@")
        outcome = cli("validate", "--server", login, *options)
        refused = cli("check", "--server", f"{login}/nothing")
    assert outcome.code == 1  # one needle decides nothing
    sent = {request.headers.get("authorization") for request in server.requests}
    assert sent == {"Basic bWU6czNjcmV0"}
    assert refused.code == 5
    assert "no known API" in refused.err
    stored = b"".join(path.read_bytes() for path in elsewhere.rglob("*") if path.is_file())
    assert stored
    for text in (outcome.out, outcome.err, refused.err, stored.decode("latin-1")):
        assert "s3cret" not in text
    os.environ["GGUFROPE_SERVER_LOGIN"] = ""


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        (("validate", "--ctx", "512"), 2, "missing FILE, a model; or --server"),
        (("validate", "a.gguf", "--server", "http://a.test"), 2, "with --server give no FILE"),
        (("validate", "a.gguf", "--model", "a"), 2, "--model is for --server"),
        (("validate", "--server", "http://a.test"), 2, "--server needs --ctx"),
        (("validate", "--server", "a.test", "--ctx", "512"), 2, "--server 'a.test': expected"),
        (
            ("validate", "--server", "http://127.0.0.1:9", "--ctx", "512", "--scaling", "yarn"),
            2,
            "give no --scaling and no --kv with --server",
        ),
        (
            ("compare", "--server", "http://127.0.0.1:9", "--ctx", "512", "--kv", "q8_0"),
            2,
            "give no --scaling and no --kv with --server",
        ),
        (
            ("validate", "--server", "http://127.0.0.1:9", "--ctx", "512", "--tasks", "perplexity"),
            2,
            "--tasks perplexity: a server gives no logits",
        ),
        (("validate", "--server", "http://127.0.0.1:9", "--ctx", "512"), 5, "no server there"),
        (("check",), 2, "missing FILE"),
        (("check", "a.gguf", "--server", "http://a.test"), 2, "give no FILE"),
        (("check", "--server", "http://a.test", "--whole"), 2, "no option for files"),
        (
            ("validate", "--server", "http://a.test", "--ctx", "512", "--no-flash-attention"),
            2,
            "--flash-attention",
        ),
        (("check", "a.gguf", "--ctx", "1k"), 2, "are for --server"),
        (("check", "--server", "http://127.0.0.1:9"), 5, "no server there"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    cli: Call, call: tuple[str, ...], code: int, message: str
) -> None:
    outcome = cli(*call)
    assert outcome.code == code, outcome.err
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
