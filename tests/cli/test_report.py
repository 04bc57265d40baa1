"""`ggufrope report`: every form of a stored run or search, to a file or to standard output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Call

pytestmark = pytest.mark.llama

pytest.importorskip("jinja2", reason="the page needs jinja2, of the extra 'report'")
pytest.importorskip("vl_convert", reason="charts need vl-convert-python, of the extra 'report'")

FORMS = ("html", "png", "svg", "md", "junit", "csv", "jsonl")
BEGINS = {
    "html": b"<!doctype html>",
    "png": b"\x89PNG",
    "svg": b"<svg",
    "md": b"## nano",
    "junit": b"<?xml",
    "csv": b"model,",
    "jsonl": b'{"cell"',
}


@pytest.fixture
def run(cli: Call, nano: Path, tmp_path: Path) -> Path:
    """The folder of a small run."""
    folder = tmp_path / "run"
    grid = ("--ctx", "256", "--depths", "2", "--haystack", "noise", "--threads", "1")
    cli("validate", nano, *grid, "--out", folder)
    return folder


@pytest.fixture
def search(cli: Call, nano: Path, tmp_path: Path) -> Path:
    """The folder of a small search."""
    pytest.importorskip("cma", reason="a search needs cma, of the extra 'search'")
    folder = tmp_path / "found"
    counts = ("--candidates", "8", "--finalists", "1", "--samples", "1", "--screening-samples", "1")
    options = ("--target-ctx", "512", "--space", "yarn", *counts, "--holdout-haystacks", "2")
    assert cli("search", nano, *options, "--out", folder).code == 0
    return folder


def test_each_file_is_written_and_named(cli: Call, run: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"a [b].{name}" for name in FORMS}
    flags = [word for name, path in files.items() for word in (f"--{name}", path)]
    outcome = cli("report", run, *flags)
    assert (outcome.code, outcome.out) == (0, "")
    for name, path in files.items():
        assert path.read_bytes().startswith(BEGINS[name]), name
        assert f"wrote {path} (" in outcome.err
    assert outcome.err.count("KiB)") + outcome.err.count(" B)") == len(FORMS)
    cells = [json.loads(line) for line in files["jsonl"].read_text().splitlines()]
    assert cells == cli("report", run, "--json").json["cells"]


def test_what_is_stored_is_not_written_over(cli: Call, run: Path, nano: Path) -> None:
    before = (run / "run.sqlite").read_bytes()
    for options in (
        ("--md", run / "run.sqlite"),
        ("--against", run, "--csv", run / "plan.toml"),
        ("--csv", "x", "--jsonl", "x"),
        ("--md", nano),
    ):
        outcome = cli("report", run, *options)
        assert (outcome.code, outcome.out) == (2, ""), options
    assert (run / "run.sqlite").read_bytes() == before
    assert nano.read_bytes()[:4] == b"GGUF"
    assert cli("report", run, "--md", run / "page.md").code == 0
    assert cli("report", run, "--md", run / "page.md").code == 0


def test_a_dash_is_standard_output(cli: Call, run: Path) -> None:
    for name in set(FORMS) - {"png"}:
        outcome = cli("report", run, f"--{name}", "-")
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.encode().startswith(BEGINS[name])
    compared = cli("report", run, "--md", "-", "--against", run)
    assert compared.code == 0
    assert "significantly worse" in compared.out
    assert "no regressions" not in compared.out
    for words in (("--png", "-"), ("--md", "-", "--json"), ("--md", "-", "--csv", "-")):
        outcome = cli("report", run, *words)
        assert (outcome.code, outcome.out) == (2, "")
        assert "standard output" in outcome.err
    assert not Path("-").exists()


def test_a_search_is_shown_and_written(cli: Call, search: Path, tmp_path: Path) -> None:
    again = cli("report", search)
    assert again.code == 0
    assert "Every candidate is in" in again.out
    assert cli("report", search, "--json").json["file"] == "nano.gguf"
    files = {name: tmp_path / f"search.{name}" for name in ("html", "png", "svg", "md")}
    flags = [word for name, path in files.items() for word in (f"--{name}", path)]
    assert cli("report", search, *flags).code == 0
    for name, path in files.items():
        assert path.read_bytes().startswith(BEGINS[name]), name
    for words, reason in (
        (("--junit", tmp_path / "x"), "--junit: a search has no such form"),
        (("--against", search), "searches are not compared"),
    ):
        outcome = cli("report", search, *words)
        assert outcome.code == 2
        assert reason in outcome.err
    (search / "result.json").unlink()
    outcome = cli("report", search, "--json")
    assert outcome.code == 2
    assert "has not ended: run the same command" in outcome.err
    so_far = cli("report", search)
    assert so_far.code == 0
    assert "has not ended: run the same command" in " ".join(so_far.out.split())
    assert "holdout" in so_far.out
    assert " of 8" in so_far.out
    assert max(map(len, so_far.out.splitlines())) <= 80
