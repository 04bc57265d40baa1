from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from fixtures.make import build
from tests.cli.conftest import Call

pytestmark = pytest.mark.llama

QUICK = (
    *("--target-ctx", "1k", "--candidates", "8", "--finalists", "1", "--samples", "1"),
    *("--haystacks", "1", "--screening-samples", "1", "--screening-ctx", "600"),
    *("--holdout-haystacks", "2", "--threads", "1"),
)


def test_search_then_patch_with_what_it_found(cli: Call, llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = cli("search", llama, *QUICK, "--space", "longrope", "--out", out, "--json").json
    assert {"searched", "yarn"} <= {finalist["name"] for finalist in answer["finals"]}
    assert answer["to_beat"] == "yarn"
    assert answer["overhead_share"] < 0.05
    assert answer["updates_in_place"] is True
    assert [curve["name"] for curve in answer["curves"]] == ["searched", "linear", "ntk", "yarn"]
    assert sorted(path.name for path in out.iterdir()) == [
        "factors.json",
        "result.json",
        "search.jsonl",
    ]
    patched = cli(*answer["searched_patch_command"].split()[1:], "--json")
    assert patched.code == 0
    seen = cli("inspect", tmp_path / "llama-1024.gguf", "--ctx", "1024", "--json").json
    plain = cli("inspect", llama, "--json").json
    (long,), (own,) = seen["effective"]["groups"], plain["effective"]["groups"]
    pairs = zip(own["inverse_frequencies"], long["inverse_frequencies"], strict=True)
    factors = answer["curves"][0]["factors"]
    assert [before / after for before, after in pairs] == pytest.approx(factors, rel=1e-5)
    assert long["magnitude"] == pytest.approx(answer["curves"][0]["magnitude"])


def test_the_same_call_shows_the_result_again_and_another_is_refused(
    cli: Call, llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = cli("search", llama, *QUICK, "--out", out)
    assert first.code == 0
    assert "conclusion" in first.out
    assert "Keep YaRN:\n  ggufrope patch" in first.out
    assert "The searched scheme (not recommended):\n  ggufrope patch" in first.out
    kept = (out / "search.jsonl").read_bytes()
    assert cli("search", llama, *QUICK, "--out", out).code == 0
    assert (out / "search.jsonl").read_bytes() == kept
    other = cli("search", llama, *QUICK, "--out", out, "--seed", "1")
    assert other.code == 2
    assert "another search: seed was 0" in other.err


def test_yarns_parameters_where_no_factors_load(cli: Call, tmp_path: Path) -> None:
    qwen = build("qwen2", tmp_path / "qwen.gguf", context=512)[0]
    refused = cli("search", qwen, *QUICK, "--space", "longrope", "--out", tmp_path / "out")
    assert refused.code == 2
    assert "search with the space yarn" in refused.err
    assert not (tmp_path / "out").exists()
    yarn = (*QUICK, "--attention", "formula")
    answer = cli("search", qwen, *yarn, "--out", tmp_path / "yarn", "--json").json
    assert answer["winner"]["scheme"] == "Yarn"
    assert "--yarn-beta-slow" in answer["searched_serve_command"]


def test_a_base_and_an_attention_factor_are_flags(cli: Call, llama: Path, tmp_path: Path) -> None:
    base = (*QUICK, "--space", "base-linear", "--attention", "free")
    answer = cli("search", llama, *base, "--out", tmp_path / "base", "--json").json
    assert "--rope-freq-base" in answer["searched_serve_command"]
    within = (*QUICK, "--space", "attention", "--target-ctx", "512", "--screening-ctx", "400")
    shown = cli("search", llama, *within, "--out", tmp_path / "within")
    assert shown.code == 0
    assert "the model as it stands" in shown.out.replace("\n", " ")
    if "The search wins" not in shown.out:
        assert "Keep the model as it stands." in shown.out


def test_two_lengths_have_a_front(cli: Call, llama: Path, tmp_path: Path) -> None:
    two = ("--short-weight", "0.3", "--out", tmp_path / "out")
    shown = cli("search", llama, *QUICK, *two)
    assert shown.code == 0
    assert "at 1,024" in shown.out
    assert "front" in shown.out
    refused = cli("search", llama, *QUICK, "--short-weight", "1", "--out", tmp_path / "no")
    assert refused.code == 2
    assert "--short-weight must be from 0 to below 1, got 1" in refused.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target-ctx", "512"), "not above the original context of 512"),
        (("--target-ctx", "1k", "--budget", "soon"), "--budget soon: expected a time"),
        (("--target-ctx", "1k", "--candidates", "3"), "--candidates must be at least 8, got 3"),
        (("--target-ctx", "1k,2k"), "--target-ctx 1k,2k: expected tokens"),
        (("--target-ctx", "1k", "--space", "flat"), "--space flat: expected yarn, yarn-factor, "),
        (("--target-ctx", "1k", "--fitness", "poor"), "--fitness poor: expected needle, "),
        (("--target-ctx", "1k", "--kv", "f17"), "--kv f17: expected f32, "),
    ],
)
def test_what_makes_no_sense_is_one_line(
    cli: Call, llama: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    refused = cli("search", llama, *options, "--out", tmp_path / "out")
    assert refused.code == 2
    assert message in refused.err
    assert refused.err.count("\n") == 1
    assert not (tmp_path / "out" / "search.jsonl").exists()


def test_text_shorter_than_a_sample(cli: Call, llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Too short by far. And that is all there is.")
    perplexity = ("--fitness", "perplexity", "--text", text)
    refused = cli("search", llama, *QUICK, *perplexity, "--out", tmp_path / "out")
    assert refused.code == 2
    assert "too short" in refused.err


def test_a_working_folder_without_room(cli: Call, llama: Path, small_disk: Path) -> None:
    with suppress(OSError), (small_disk / "full").open("wb", buffering=0) as stream:
        while stream.write(bytes(4096)):
            pass
    out = small_disk.parent / "out"
    refused = cli("search", llama, *QUICK, "--work-dir", small_disk, "--out", out)
    assert refused.code == 3
    assert "No space left" in refused.err


def test_json_result_is_kept_too(cli: Call, llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = cli("search", llama, *QUICK, "--out", out, "--json").json
    assert json.loads((out / "result.json").read_text())["conclusion"] == answer["conclusion"]
