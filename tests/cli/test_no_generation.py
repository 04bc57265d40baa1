"""Models that generate no text: every command says so, before anything is loaded or measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.make import build
from tests.cli.conftest import Call

KINDS: dict[str, tuple[str, dict[str, bool | int]]] = {
    "encoder": ("gemma-embedding", {"pooling_type": 1}),
    "pooled": ("qwen3", {"pooling_type": 3}),
    "bidirectional": ("llama", {"attention.causal": False}),
    "reranker": ("qwen3", {"pooling_type": 4}),
}


@pytest.fixture(params=KINDS)
def silent(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    architecture, keys = KINDS[request.param]
    return build(architecture, tmp_path / f"{request.param}.gguf", keys=keys)[0]


@pytest.mark.llama
@pytest.mark.parametrize(
    "words",
    [
        ("validate", "--ctx", "256"),
        ("compare", "--ctx", "256,512"),
        ("search", "--target-ctx", "1024"),
    ],
)
def test_measuring_is_refused_in_one_line(
    cli: Call, silent: Path, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = cli(words[0], silent, *words[1:])
    assert (outcome.code, outcome.out) == (2, "")
    assert "does not generate text token by token" in outcome.err
    assert outcome.err.count("\n") == 1


def test_inspect_and_check_say_what_it_is(cli: Call, silent: Path) -> None:
    for command in ("inspect", "check"):
        outcome = cli(command, silent, "--json")
        assert outcome.code == 0
        findings = outcome.json.get("findings") or outcome.json["files"][0]["findings"]
        (found,) = [each for each in findings if each["code"] == "no-generation"]
        assert found["severity"] == "info"


def test_advice_proposes_nothing_that_is_refused(cli: Call, silent: Path) -> None:
    answer = cli("advise", silent, "--target-ctx", "1024", "--json").json
    assert any("does not generate text" in warning for warning in answer["warnings"])
    commands = [command for option in answer["options"] for command in option["commands"]]
    assert commands
    assert {command.split()[1] for command in commands} == {"patch"}


@pytest.mark.llama
def test_an_encoder_has_no_cache_and_nothing_to_probe(cli: Call, tmp_path: Path) -> None:
    path = build("gemma-embedding", tmp_path / "m.gguf")[0]
    answer = cli("advise", path, "--target-ctx", "1024", "--memory", "1GiB", "--json").json
    assert answer["memory"] == []
    assert any("no K/V cache" in warning for warning in answer["warnings"])
    small = cli("advise", path, "--target-ctx", "1024", "--memory", "1KiB", "--json").json
    assert small["warnings"] == answer["warnings"]
    assert "memory at the target" not in cli("advise", path, "--target-ctx", "1024").out
    probed = cli("probe", path)
    assert (probed.code, probed.out) == (5, "")
    assert "nothing to measure: it is an encoder" in probed.err
    assert probed.err.count("\n") == 1


@pytest.mark.llama
def test_doctor_lists_no_cache_types_for_an_encoder(cli: Call, tmp_path: Path) -> None:
    path = build("gemma-embedding", tmp_path / "m.gguf")[0]
    answer = cli("doctor", "--model", path, "--json").json
    assert answer["caches"] == []
    assert any("no K/V cache" in line for line in answer["advice"])
    pooled = build("qwen3", tmp_path / "p.gguf", keys={"pooling_type": 3})[0]
    assert cli("doctor", "--model", pooled, "--json").json["caches"]


@pytest.mark.llama
def test_the_cache_of_a_pooled_decoder_is_there_to_measure(cli: Call, tmp_path: Path) -> None:
    path = build("qwen3", tmp_path / "m.gguf", keys={"pooling_type": 3})[0]
    assert cli("probe", path, "--json").json["agrees"]
    assert cli("advise", path, "--target-ctx", "1024", "--json").json["memory"]
