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

import numpy as np
import pytest
from ggufrope_cli.options_run import RunOptions

from fixtures.make import build
from ggufrope.patching.request import ScalingRequest
from ggufrope.runs.plan import RunPlan
from tests.cli.conftest import Call

GRID = ("--depths", "3", "--haystack", "noise", "--threads", "1")
FEW = (*GRID, "--samples", "1")
"""Three needles for each length: enough to measure, too few to decide."""
ENOUGH = (*GRID, "--samples", "12")


@pytest.mark.llama
def test_json_has_the_words_of_the_contract(cli: Call, nano: Path) -> None:
    outcome = cli("validate", nano, "--ctx", "256", *ENOUGH, "--json")
    assert outcome.code == 0
    answer = outcome.json
    assert {"cells", "summary", "verdict", "conclusion", "plan", "models"} <= set(answer)
    assert (answer["verdict"]["passed"], answer["verdict"]["outcome"]) == (True, "pass")
    assert answer["conclusion"]["headline"] == "as it stands: holds to 256 tokens"
    scored = [cell for cell in answer["cells"] if cell["status"] == "ok"]
    assert len(scored) >= 36 + 35
    for cell in scored:
        assert 0 < cell["prompt_tokens"] <= 256
    (model,) = answer["models"]
    assert len(model["sha256"]) == 64
    assert len(model["header_sha256"]) == 64


def test_options_left_out_have_the_defaults_of_a_plan() -> None:
    scalings = (ScalingRequest(scaling="file"),)
    plan = RunPlan(models=("m.gguf",), contexts=(256, 4096), scalings=scalings)
    assert RunOptions(ctx="256,4k").plan("m.gguf", scalings) == plan


@pytest.mark.llama
def test_tables_explain_their_metrics_in_the_terminal(
    cli: Call, nano: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    tasks = ("--tasks", "needle,kv-cache", "--kv", "q8_0")
    outcome = cli("validate", nano, "--ctx", "256", *FEW, *tasks, "--out", run)
    assert outcome.code == 1
    text = " ".join(outcome.out.split())
    assert "recall: share of needles that whole prompts answer exactly; log-prob: mean" in text
    assert "bytes/token: size of the KV cache per token of context" in text
    assert "KV: types of the K and V cache" in text
    compared = cli("report", run, "--against", run)
    assert compared.code == 0
    assert compared.out.rstrip().endswith("no regressions")
    assert "log-prob: mean log-probability of the answer's" in " ".join(compared.out.split())
    assert max(map(len, (outcome.out + compared.out).splitlines())) <= 80


@pytest.mark.llama
def test_a_run_that_no_threshold_applies_to_is_no_failure(cli: Call, nano: Path) -> None:
    run = ("validate", nano, "--ctx", "256", "--threads", "1")
    outcome = cli(*run, "--tasks", "kv-cache")
    assert outcome.code == 0
    assert outcome.out.rstrip().endswith("measured; no threshold applies")
    divergence = cli(*run, "--tasks", "divergence", "--kv", "q8_0")
    assert divergence.code == 0
    assert divergence.out.rstrip().endswith(
        "measured; no threshold applies (give --max-divergence)"
    )
    gated = cli(*run, "--tasks", "divergence", "--kv", "q8_0", "--max-divergence", "1e-9")
    assert gated.code == 1
    assert "nat per token from the file as it stands, f16 cache (limit: 1e-09)" in " ".join(
        gated.out.split()
    )


@pytest.mark.llama
def test_few_needles_are_undecided_which_can_be_allowed(cli: Call, nano: Path) -> None:
    run = ("validate", nano, "--ctx", "256", *FEW)
    outcome = cli(*run)
    assert outcome.code == 1
    text = " ".join(outcome.out.split())
    assert "undecided needle recall at 256 tokens: 100.0% (required: at least 90.0%); 3" in text
    assert "undecided as it stands: may hold to 256 tokens, undecided at 256 tokens" in text
    assert text.endswith("35 of 35 whole prompts would show 90%: --samples 12")
    assert cli(*run, "--allow-undecided").code == 0


@pytest.mark.llama
def test_a_failed_verdict_is_exit_1_and_says_why(cli: Call, nano: Path) -> None:
    outcome = cli("validate", nano, "--ctx", "1024,2048", *ENOUGH)
    assert outcome.code == 1
    text = " ".join(outcome.out.split())
    assert "FAIL needle recall at 2048 tokens: 0.0% (required: at least 90.0%); 36" in text
    assert "; 100.0% at 256 tokens" in text
    assert "as it stands: fails at 1024 tokens" in text
    assert max(map(len, outcome.out.splitlines())) <= 80


@pytest.mark.llama
def test_the_grids_are_shown_where_they_are_wanted(cli: Call, nano: Path) -> None:
    run = ("validate", nano, "--ctx", "256", *FEW)
    assert "depth" not in cli(*run).out
    grids = cli(*run, "--grids").out
    assert "needle · nano · as it stands · KV f16" in grids
    assert "mean probability of the answer's tokens, ✓ exact match" in grids


@pytest.mark.llama
def test_a_scaling_that_is_only_tried_writes_nothing_and_helps(cli: Call, nano: Path) -> None:
    before = sorted(nano.parent.iterdir())
    found = {}
    for method in ("none", "yarn"):
        options = (
            ("--scaling", method) if method == "none" else ("--scaling", method, "--factor", "2")
        )
        answer = cli("validate", nano, "--ctx", "512", *FEW, *options, "--json").json
        (row,) = [row for row in answer["summary"] if not row["control"]]
        found[method] = row["metrics"]["log_probability"]["value"]
    assert found["yarn"] > found["none"]
    assert sorted(nano.parent.iterdir()) == before


@pytest.mark.llama
def test_a_scheme_in_tensors_is_tried_on_a_working_copy(cli: Call, nano: Path) -> None:
    options = ("--scaling", "ntk-by-parts", "--factor", "2")
    answer = cli("validate", nano, "--ctx", "512", *FEW, *options, "--json").json
    (row,) = [row for row in answer["summary"] if not row["control"]]
    assert row["metrics"]["recall"]["value"] == 1


@pytest.mark.llama
def test_compare_says_which_scheme_holds_to_which_length(
    cli: Call, nano: Path, tmp_path: Path
) -> None:
    run = ("compare", nano, "--ctx", "256,640", *ENOUGH, "--scaling", "none,linear,yarn")
    outcome = cli(*run, "--out", tmp_path / "run")
    assert outcome.code == 0, "it could compare"
    first, *lines = outcome.out.strip().splitlines()
    assert first == "nano · needle recall, at least 90% · 256 → 640"
    assert [line.split() for line in lines[:4]] == [
        ["256", "640", "holds", "to"],
        ["yarn", "×2.5", "✓", "✓", "640", "72/72", "◀", "best"],
        ["unscaled", "✓", "✗", "256", "53/72", "as", "trained"],
        ["linear", "×2.5", "✗", "✗", "–", "0/72"],
    ]
    assert lines[-2] == "best: yarn ×2.5, 256 → 640: holds to 640 tokens"
    assert lines[-1].startswith("to keep it: ggufrope patch ")
    assert lines[-1].endswith("nano-yarn-640.gguf --scaling yarn --target-ctx 640")
    assert "the scaling, not the model" in " ".join(outcome.out.split())
    again = (*run, "--out", tmp_path / "run", "--json", "--require")
    assert cli(*again, "yarn").code == 0
    failed = cli(*again, "linear")
    assert failed.code == 1
    assert failed.json["verdict"]["outcome"] == "fail"


@pytest.mark.llama
def test_compare_takes_factors_of_one_scheme(cli: Call, nano: Path) -> None:
    schemes = ("--scaling", "none,yarn,YARN-6x", "--require", "yarn-6x")
    answer = cli("compare", nano, "--ctx", "1024", *FEW, *schemes, "--json").json
    assert [each["scaling"] for each in answer["plan"]["scalings"]] == ["none", "yarn", "yarn"]
    measured = {row["scaling"] for row in answer["summary"] if not row["control"]}
    assert measured == {"none", "yarn", "yarn-6x"}
    assert answer["plan"]["thresholds"]["require"] == "yarn-6x"
    twice = cli("compare", nano, "--ctx", "1024", *FEW, "--scaling", "yarn-4x,yarn-4.0x")
    assert (twice.code, "more than once" in twice.err) == (2, True)


@pytest.mark.llama
def test_compare_with_none_takes_a_scaled_file_as_it_stands(cli: Call, tmp_path: Path) -> None:
    steps = np.linspace(1, 8, 16, dtype=np.float32)
    path = build("llama", tmp_path / "m.gguf", context=512, factors={"rope_freqs.weight": steps})[0]
    grid = ("--ctx", "128", "--tasks", "perplexity", "--chunks", "1", "--threads", "1", "--json")
    outcome = cli("compare", path, "--scaling", "none,yarn,file", "--target-ctx", "1k", *grid)
    assert outcome.code == 0, outcome.out
    assert {row["scaling"] for row in outcome.json["summary"]} == {"file", "yarn"}


@pytest.mark.llama
def test_compare_takes_the_file_as_it_stands(cli: Call, nano: Path) -> None:
    schemes = ("--scaling", "file,yarn", "--factor", "4")
    answer = cli("compare", nano, "--ctx", "1024", *FEW, *schemes, "--json").json
    rows = {row["scaling"]: row for row in answer["summary"] if not row["control"]}
    assert set(rows) == {"file", "yarn-4x"}
    log_probability = {
        name: row["metrics"]["log_probability"]["value"] for name, row in rows.items()
    }
    assert log_probability["yarn-4x"] > log_probability["file"]


@pytest.mark.llama
def test_cache_types_and_what_cannot_run(cli: Call, nano: Path) -> None:
    kv = ("--kv", "f16,q8_0,f16/q4_0", "--no-flash-attention")
    answer = cli("validate", nano, "--ctx", "256", *FEW, *kv, "--json").json
    statuses = {(cell["cell"]["kv"], cell["status"]) for cell in answer["cells"]}
    assert ("f16", "ok") in statuses
    assert {pair for pair in statuses if pair[0] != "f16"} == {
        ("q8_0", "unsupported"),
        ("f16/q4_0", "unsupported"),
    }
    assert answer["verdict"]["passed"] is False


@pytest.mark.llama
def test_results_are_stored_resumed_and_written_in_every_format(
    cli: Call, nano: Path, tmp_path: Path
) -> None:
    run = ("validate", nano, "--ctx", "256", *FEW, "--out", tmp_path / "run", "--json")
    first = cli(*run).json
    again = cli(*run).json
    assert again["cells"] == first["cells"]
    forms = {name: tmp_path / f"report.{name}" for name in ("html", "csv", "junit")}
    flags = [part for name, path in forms.items() for part in (f"--{name}", path)]
    assert cli("report", tmp_path / "run", *flags).code == 0
    assert len(forms["csv"].read_text().splitlines()) == 1 + 3 + 3
    assert len(ElementTree.parse(forms["junit"]).findall(".//testcase")) >= 3
    page = forms["html"].read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    same = cli("report", tmp_path / "run", "--against", tmp_path / "run", "--json")
    assert same.code == 0
    assert same.json["against"]["regressions"] == 0
    other = cli("validate", nano, "--ctx", "512", *FEW, "--out", tmp_path / "run")
    assert other.code == 2
    assert "holds the run of another plan: contexts [256] -> [512]" in other.err


@pytest.mark.llama
def test_a_stored_run_is_judged_by_the_thresholds_asked_for_now(
    cli: Call, nano: Path, tmp_path: Path
) -> None:
    run = ("validate", nano, "--ctx", "1024", *ENOUGH, "--out", tmp_path / "run", "--min-recall")
    strict = cli(*run, "0.9")
    assert strict.code == 1
    assert "FAIL needle recall at 1024 tokens" in strict.out
    lenient = cli(*run, "0", "--json")
    assert lenient.code == 0
    assert "plan has changed, judged by it now: thresholds.recall 0.9 -> 0.0" in lenient.err
    assert cli("report", tmp_path / "run", "--json").json["verdict"]["passed"] is True


@pytest.mark.llama
def test_a_batch_survives_kill_9_and_resumes(nano: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f"models = [{json.dumps(str(nano))}]\ncontexts = [256, 512, 1024]\n"
        'scalings = ["none", "yarn"]\ndepths = 11\nseeds = [0, 1]\ncontrol = false\n'
        'mode = "whole"\nsamples = 1\n'
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


@pytest.mark.llama
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
        (("--ctx", "256", "--depths", "50,50.0"), "--depths has 50 more than once"),
        (("--ctx", "256", "--tasks", "ruler", "--squad", "absent.json"), "absent.json"),
        (("--ctx", "256", "--scaling", "factors", "--long-factors", "absent.npy"), "absent.npy"),
        (("--ctx", "256", "--gpu-layers", "few"), "few"),
        (("--ctx", "256", "--experts-on-cpu", "some"), "expected all or a number"),
        (("--ctx", "256", "--experts-on-cpu", "600"), "--experts-on-cpu 600 must be 0 to 512"),
        (("--ctx", "256", "--min-recall", "2"), "recall"),
        (("--ctx", "256", "--max-divergence", "1"), "--max-divergence needs --tasks divergence"),
        (
            ("--ctx", "256", "--tasks", "kv-cache", "--min-recall", "0.9"),
            "--min-recall needs --tasks needle or passkey",
        ),
        (("--ctx", "256", "--beta-fast", "3"), "--beta-fast needs --scaling"),
        (("--ctx", "256", "--scaling", "none,yarn"), "for several schemes use `compare`"),
    ],
)
def test_bad_requests(cli: Call, nano: Path, arguments: tuple[str, ...], message: str) -> None:
    outcome = cli("validate", nano, *arguments)
    assert outcome.code in (2, 3)
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scaling", "yarn,ntk", "--beta-fast", "16"), "--beta-fast does not apply to --scaling"),
        (("--scaling", "none,file", "--factor", "2"), "--factor does not apply to --scaling none"),
        (("--scaling", "none,yarm"), "--scaling yarm"),
        (("--scaling", "none,yarn", "--require", "ntk"), "--require ntk: expected "),
        (("--tasks", "kv-cache", "--require", "yarn"), "no threshold applies to --tasks kv-cache"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused_at_once(
    cli: Call, nano: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = cli("compare", nano, "--ctx", "256", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""


@pytest.mark.llama
def test_an_unwritable_folder(cli: Call, nano: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = cli("validate", nano, "--ctx", "256", "--out", tmp_path / "file" / "run")
    assert outcome.code == 3
    assert outcome.err.count("\n") == 1


@pytest.mark.llama
def test_no_share_of_its_own_recall_is_judged(cli: Call, nano: Path) -> None:
    outcome = cli("validate", nano, "--ctx", "256", *ENOUGH, "--min-recall-share", "0.9", "--json")
    assert outcome.code == 0
    assert [check["name"] for check in outcome.json["verdict"]["checks"]] == ["recall"]
