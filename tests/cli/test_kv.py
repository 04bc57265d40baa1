"""Which cache is safe, and what a file costs compared with another: on nano and llama.cpp."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ggufrope.backends.runtimes import require_room
from ggufrope.backends.settings import RuntimeSettings
from ggufrope.container.reader import read_header
from ggufrope.container.types import ArrayValue
from ggufrope.errors import InsufficientMemoryError
from tests.cli.conftest import Call

FEW = ("--depths", "3", "--haystack", "noise", "--threads", "1", "--chunks", "1")
BASE = ("--ctx", "256", "--tasks", "divergence", "--threads", "1", "--chunks", "2")


@pytest.fixture
def copy(nano: Path, tmp_path: Path) -> Path:
    """The same model in another file."""
    return Path(shutil.copy(nano, tmp_path / "original.gguf"))


@pytest.mark.llama
def test_the_answer_in_the_terminal(cli: Call, nano: Path) -> None:
    kv = ("--kv", "q8_0,q4_0", "--samples", "10")
    outcome = cli("validate", nano, "--ctx", "256", "--tasks", "kv", *kv, *FEW)
    assert outcome.code == 0
    text = " ".join(outcome.out.split())
    assert "base: an f16 cache of nano under the same scaling (file)" in text
    assert "UNSAFE q4_0" in text
    assert "control: the unscaled model" not in text  # it is measured itself
    assert "empty: not asked; what f16 answers none of, no cache can lose" in text
    headline = "the smallest safe cache at 256 tokens: q8_0, 136.5 KiB, 53% of f16's"
    serve = f"to serve it: llama-server -m {nano} -c 256 --cache-type-k q8_0 --cache-type-v q8_0"
    assert f"{headline} {serve} --flash-attn on" in text
    assert "FAIL" not in text


@pytest.mark.llama
def test_the_answer_for_scripts(cli: Call, nano: Path) -> None:
    kv = ("--kv", "q4_0", "--samples", "1")
    outcome = cli(
        "validate", nano, "--ctx", "512", "--scaling", "yarn", "--tasks", "kv", *kv, *FEW, "--json"
    )
    assert outcome.code == 0
    (answer,) = outcome.json["conclusion"]["caches"]
    f16, q4_0 = answer["rows"]
    assert (f16["kv"], f16["verdict"]) == ("f16", None)
    assert f16["divergence"]["name"] == "rounding"
    assert 0 < f16["divergence"]["value"] < 1e-3 < q4_0["divergence"]["value"]
    assert (q4_0["kv"], q4_0["verdict"]["word"]) == ("q4_0", "unsafe")
    assert q4_0["memory_bytes"] < f16["memory_bytes"] == 512 * 1024
    assert q4_0["prefill"] > 0
    assert q4_0["decode"] > 0
    costs = {(row["kv"], row["cost_of"]) for row in outcome.json["summary"] if row["base"]}
    assert costs == {("f16", "scaling"), ("f16", None), ("q4_0", "cache")}
    assert answer["control"]["needle"] == [3, 3]


@pytest.mark.llama
def test_a_pair_that_does_not_run_is_unsupported_and_the_others_go_on(
    cli: Call, nano: Path
) -> None:
    kv = ("--kv", "q8_0,q8_0/f16", "--samples", "10", "--no-flash-attention")
    outcome = cli("validate", nano, "--ctx", "256", "--tasks", "kv", *kv, *FEW, "--json")
    assert outcome.code == 0
    (answer,) = outcome.json["conclusion"]["caches"]
    words = {row["kv"]: row["verdict"] for row in answer["rows"] if row["verdict"]}
    assert words["q8_0"]["word"] == "unsupported"
    assert "flash attention" in words["q8_0"]["reason"]
    assert words["q8_0/f16"]["word"] == "safe"
    assert answer["best"] == "q8_0/f16"
    assert answer["commands"][0].endswith("--cache-type-k q8_0 --cache-type-v f16")


@pytest.mark.llama
def test_a_given_threshold_still_gates(cli: Call, nano: Path) -> None:
    kv = ("--kv", "q4_0", "--samples", "1", "--max-divergence", "0.0001")
    outcome = cli("validate", nano, "--ctx", "256", "--tasks", "kv", *kv, *FEW)
    assert outcome.code == 1
    assert "FAIL" in outcome.out


@pytest.mark.llama
def test_the_same_weights_in_another_file_differ_in_nothing(
    cli: Call, nano: Path, copy: Path
) -> None:
    outcome = cli("validate", nano, *BASE, "--base", copy, "--json")
    assert outcome.code == 0
    (row,) = outcome.json["summary"]
    assert (row["base"], row["cost_of"]) == ("original · f16", "file")
    assert row["metrics"]["mean_divergence"]["value"] == 0
    assert row["metrics"]["same_top"]["value"] == 1


@pytest.mark.llama
def test_another_file_costs_what_it_changes(cli: Call, nano: Path, tmp_path: Path) -> None:
    other = tmp_path / "scaled.gguf"
    assert cli("patch", nano, "-o", other, "--scaling", "linear", "--factor", "4").code == 0
    tasks = ("--ctx", "256", "--tasks", "divergence,short-context", "--threads", "1")
    outcome = cli("validate", other, *tasks, "--chunks", "1", "--base", nano)
    text = " ".join(outcome.out.split())
    assert outcome.code == 1
    assert "cost of the file: divergence from nano, with an f16 cache" in text
    assert "nat per token above nano, f16 cache" in text


@pytest.mark.llama
def test_a_limit_judges_the_cost_of_a_file(cli: Call, nano: Path, copy: Path) -> None:
    limit = ("--max-divergence", "0.01")
    assert cli("validate", nano, *BASE, "--base", copy, *limit).code == 0


@pytest.mark.llama
def test_another_vocabulary_is_refused_before_anything_is_loaded(
    cli: Call, nano: Path, copy: Path
) -> None:
    tokens = read_header(copy).get("tokenizer.ggml.tokens")
    assert isinstance(tokens, ArrayValue)
    with open(copy, "r+b") as file:
        file.seek(tokens.span.end - 1)
        last = file.read(1)
        file.seek(tokens.span.end - 1)
        file.write(bytes([last[0] ^ 1]))
    outcome = cli("validate", nano, *BASE, "--base", copy)
    assert outcome.code == 2
    assert "nano and the base original have different vocabularies" in outcome.err
    assert "tokenizer.ggml.tokens" in outcome.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--tasks", "needle"), "--base needs --tasks divergence or short-context"),
        (("--tasks", "kv,divergence"), "--base and --tasks kv"),
    ],
)
def test_a_base_that_makes_no_sense_is_refused(
    cli: Call, nano: Path, copy: Path, words: tuple[str, ...], reason: str
) -> None:
    outcome = cli("validate", nano, "--ctx", "256", *words, "--base", copy)
    assert outcome.code == 2
    assert reason in outcome.err


@pytest.mark.llama
def test_the_file_itself_is_no_base(cli: Call, nano: Path) -> None:
    outcome = cli("validate", nano, *BASE, "--base", nano)
    assert outcome.code == 2
    assert "is the model itself" in outcome.err


@pytest.mark.llama
def test_a_base_that_is_missing_is_a_bad_file(cli: Call, nano: Path, tmp_path: Path) -> None:
    assert cli("validate", nano, *BASE, "--base", tmp_path / "none.gguf").code == 3


@pytest.mark.llama
def test_results_of_one_base_are_not_mixed_with_those_of_another(
    cli: Call, nano: Path, copy: Path, tmp_path: Path
) -> None:
    run = ("validate", nano, *BASE, "--base", copy, "--out", tmp_path / "run")
    assert cli(*run).code == 0
    with open(copy, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    outcome = cli(*run)
    assert outcome.code == 3
    assert "original.gguf has changed since this run began" in outcome.err


@pytest.mark.llama
def test_a_second_model_without_room_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    large = tmp_path / "large.gguf"
    large.touch()
    os.truncate(large, 1 << 43)  # a hole: nothing is written
    with pytest.raises(InsufficientMemoryError, match=r"a second model of 8\.0 TiB does not fit"):
        require_room(large, RuntimeSettings(gpu_layers=0))
