"""Validation on the nano model and llama.cpp: measured, judged, stored and reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from ggufrope_cli.options_run import RunOptions

from ggufrope.patching.request import ScalingRequest
from ggufrope.runs.plan import RunPlan
from tests.cli.conftest import Call

GRID = ("--depths", "3", "--haystack", "noise", "--threads", "1")


def test_json_has_the_words_of_the_contract(cli: Call, nano: Path) -> None:
    outcome = cli("validate", nano, "--ctx", "256", *GRID, "--json")
    assert outcome.code == 0
    answer = outcome.json
    assert {"cells", "summary", "verdict", "plan", "models"} <= set(answer)
    assert answer["verdict"]["passed"] is True
    assert len(answer["cells"]) == 3
    for cell in answer["cells"]:
        assert cell["status"] == "ok"
        assert 0 < cell["prompt_tokens"] <= 256
    (model,) = answer["models"]
    assert len(model["sha256"]) == 64
    assert len(model["header_sha256"]) == 64


def test_options_left_out_have_the_defaults_of_a_plan() -> None:
    scalings = (ScalingRequest(scaling="file"),)
    plan = RunPlan(models=("m.gguf",), contexts=(256, 4096), scalings=scalings)
    assert RunOptions(ctx="256,4k").plan("m.gguf", scalings) == plan


def test_tables_explain_their_metrics_in_the_terminal(
    cli: Call, nano: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    outcome = cli(
        "validate", nano, "--ctx", "256", *GRID, "--tasks", "needle,kv-cache", "--out", run
    )
    assert outcome.code == 0
    text = " ".join(outcome.out.split())
    assert "top-ranked: share of needles whose answer is more probable than every" in text
    assert "bytes/token: size of the KV cache per token of context" in text
    compared = cli("report", run, "--against", run)
    assert compared.code == 0
    assert compared.out.rstrip().endswith("no regressions")
    assert "log-prob: mean log-probability of the answer's" in " ".join(compared.out.split())
    assert max(map(len, (outcome.out + compared.out).splitlines())) <= 80


def test_a_run_that_no_threshold_applies_to_says_so(cli: Call, nano: Path) -> None:
    outcome = cli("validate", nano, "--ctx", "256", "--tasks", "kv-cache", "--threads", "1")
    assert outcome.code == 1
    assert "no threshold applies to what was measured" in outcome.out


def test_a_failed_verdict_is_exit_1_and_says_why(cli: Call, nano: Path) -> None:
    outcome = cli("validate", nano, "--ctx", "1024,2048", *GRID)
    assert outcome.code == 1
    assert "FAIL recall at 2048 tokens: " in outcome.out
    assert "% (required: at least 90.0%)" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_a_scaling_that_is_only_tried_writes_nothing_and_helps(cli: Call, nano: Path) -> None:
    before = sorted(nano.parent.iterdir())
    found = {}
    for method in ("none", "yarn"):
        options = (
            ("--scaling", method) if method == "none" else ("--scaling", method, "--factor", "2")
        )
        answer = cli("validate", nano, "--ctx", "512", *GRID, *options, "--json").json
        (row,) = [row for row in answer["summary"] if not row["control"]]
        found[method] = row["metrics"]["log_probability"]["value"]
    assert found["yarn"] > found["none"]
    assert sorted(nano.parent.iterdir()) == before


def test_a_scheme_in_tensors_is_tried_on_a_working_copy(cli: Call, nano: Path) -> None:
    options = ("--scaling", "ntk-by-parts", "--factor", "2")
    answer = cli("validate", nano, "--ctx", "512", *GRID, *options, "--json").json
    (row,) = [row for row in answer["summary"] if not row["control"]]
    assert row["metrics"]["recall"]["value"] == 1


def test_compare_shows_methods_side_by_side(cli: Call, nano: Path) -> None:
    schemes = ("--scaling", "none,linear,ntk,yarn")
    answer = cli("compare", nano, "--ctx", "1024", *GRID, *schemes, "--json").json
    rows = {row["scaling"]: row for row in answer["summary"] if not row["control"]}
    assert set(rows) == {"none", "linear", "ntk", "yarn"}
    assert rows["yarn"]["metrics"]["recall"]["value"] > rows["linear"]["metrics"]["recall"]["value"]


def test_the_reason_of_a_cell_without_a_score_names_the_option(cli: Call, nano: Path) -> None:
    schemes = ("--scaling", "none,yarn", "--beta-slow", "2")
    outcome = cli("compare", nano, "--ctx", "256", *GRID, *schemes)
    assert outcome.code == 1
    assert "3 cells error: --beta-slow does not apply to --scaling none" in outcome.out


def test_cache_types_and_what_cannot_run(cli: Call, nano: Path) -> None:
    kv = ("--kv", "f16,q8_0,f16/q4_0", "--no-flash-attention")
    answer = cli("validate", nano, "--ctx", "256", *GRID, *kv, "--json").json
    statuses = {cell["cell"]["kv"]: cell["status"] for cell in answer["cells"]}
    assert statuses == {"f16": "ok", "q8_0": "unsupported", "f16/q4_0": "unsupported"}
    assert answer["verdict"]["passed"] is False


def test_results_are_stored_resumed_and_written_in_every_format(
    cli: Call, nano: Path, tmp_path: Path
) -> None:
    run = ("validate", nano, "--ctx", "256", *GRID, "--out", tmp_path / "run", "--json")
    first = cli(*run).json
    again = cli(*run).json
    assert again["cells"] == first["cells"]
    forms = {name: tmp_path / f"report.{name}" for name in ("html", "csv", "junit")}
    flags = [part for name, path in forms.items() for part in (f"--{name}", path)]
    assert cli("report", tmp_path / "run", *flags).code == 0
    assert len(forms["csv"].read_text().splitlines()) == 1 + 3
    assert len(ElementTree.parse(forms["junit"]).findall(".//testcase")) >= 3
    page = forms["html"].read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    same = cli("report", tmp_path / "run", "--against", tmp_path / "run", "--json")
    assert same.code == 0
    assert same.json["against"]["regressions"] == 0
    other = cli("validate", nano, "--ctx", "512", *GRID, "--out", tmp_path / "run")
    assert other.code == 2
    assert "holds the run of another plan: contexts [256] -> [512]" in other.err


def test_a_stored_run_is_judged_by_the_thresholds_asked_for_now(
    cli: Call, nano: Path, tmp_path: Path
) -> None:
    run = ("validate", nano, "--ctx", "1024", *GRID, "--out", tmp_path / "run", "--min-recall")
    assert cli(*run, "0", "--json").code == 0
    stricter = cli(*run, "1")
    assert stricter.code == 1
    assert "plan has changed, judged by it now: thresholds.recall 0.0 -> 1.0" in stricter.err
    assert "FAIL recall at 1024 tokens" in stricter.out
    assert cli("report", tmp_path / "run", "--json").json["verdict"]["passed"] is False


def test_a_batch_survives_kill_9_and_resumes(nano: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f"models = [{json.dumps(str(nano))}]\ncontexts = [256, 512, 1024]\n"
        'scalings = ["none", "yarn"]\ndepths = 11\nseeds = [0, 1]\ncontrol = false\n'
        'haystack = { kind = "noise" }\n[runtime]\nthreads = 1\n'
    )
    out = tmp_path / "run"
    script = "from ggufrope_cli.app import main; main()"
    command = [sys.executable, "-c", script, "run", str(plan), "--out", str(out), "--json"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and _cells(out) < 10:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = _cells(out)
    assert 10 <= before < 4 * 33
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 1
    report = json.loads(second.stdout)
    assert report["complete"] is True
    assert len(report["cells"]) == 4 * 33
    assert {cell["status"] for cell in report["cells"]} == {"ok"}


def _cells(folder: Path) -> int:
    """Cells stored so far."""
    import sqlite3

    if not (folder / "run.sqlite").is_file():
        return 0
    database = sqlite3.connect(f"file:{folder / 'run.sqlite'}?mode=ro", uri=True)
    try:
        return int(database.execute("SELECT count(*) FROM cells").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        database.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ctx", "many"), "--ctx many"),
        (("--ctx", "64"), "64"),
        (("--ctx", "256", "--depths", "0,150"), "150"),
        (("--ctx", "256", "--kv", "q3_k"), "q3_k"),
        (("--ctx", "256", "--tasks", "guess"), "guess"),
        (("--ctx", "256", "--mode", "twice"), "twice"),
        (("--ctx", "256", "--haystack", "absent.txt"), "absent.txt"),
        (("--ctx", "256", "--tasks", "perplexity", "--text", "absent.txt"), "absent.txt"),
        (("--ctx", "256", "--tasks", "ruler", "--squad", "absent.json"), "absent.json"),
        (("--ctx", "256", "--scaling", "factors", "--long-factors", "absent.npy"), "absent.npy"),
        (("--ctx", "256", "--gpu-layers", "few"), "few"),
        (("--ctx", "256", "--min-recall", "2"), "recall"),
    ],
)
def test_bad_requests(cli: Call, nano: Path, arguments: tuple[str, ...], message: str) -> None:
    outcome = cli("validate", nano, *arguments)
    assert outcome.code in (2, 3)
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""


def test_an_unwritable_folder(cli: Call, nano: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = cli("validate", nano, "--ctx", "256", "--out", tmp_path / "file" / "run")
    assert outcome.code == 3
    assert outcome.err.count("\n") == 1
