"""The files of the project itself: workflows call what the Makefile has, templates parse, old words
answer with the new ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ggufrope.errors import RequestError
from ggufrope.runs.plan import parse_plan

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands(workflow: Path) -> list[str]:
    """Return the lines that the steps of a workflow run."""
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    steps = [step for job in jobs for step in job.get("steps", ())]
    return [line for step in steps for line in step.get("run", "").splitlines()]


def test_there_are_workflows_and_targets() -> None:
    assert {path.name for path in WORKFLOWS} >= {"ci.yml", "release.yml"}
    assert {"setup", "lint", "test", "test-fast", "coverage", "docs", "dist"} <= TARGETS


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_of_the_makefile(workflow: Path) -> None:
    assert commands(workflow)
    for line in commands(workflow):
        program, target, *_ = line.split()
        assert program == "make", f"{workflow.name} runs {line}: put it into the Makefile"
        assert target in TARGETS


def test_ci_runs_what_the_local_gate_runs() -> None:
    gate = re.findall(r"^make (\S+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert gate
    said = {line.split()[1] for line in commands(ROOT / ".github" / "workflows" / "ci.yml")}
    assert set(gate) <= said


def test_every_supported_python_and_system_is_tried() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    matrix = jobs["fast"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_read_and_no_more_than_they_need(workflow: Path) -> None:
    parsed = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert parsed["permissions"] == {"contents": "read"}
    for job in parsed["jobs"].values():
        assert set(job.get("permissions", {})) <= {"contents", "id-token"}
        assert "uses" in job or job["timeout-minutes"] <= 60


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_issue_templates_ask_for_what_helps(template: Path) -> None:
    parsed = yaml.safe_load(template.read_text(encoding="utf-8"))
    if template.name == "config.yml":
        assert set(parsed) == {"blank_issues_enabled"}
        return
    asked = [item["attributes"].get("label", "") for item in parsed["body"]]
    assert "ggufrope doctor --json" in asked


def test_pre_commit_runs_what_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    programs = {hook["entry"].split()[0] for hook in hooks}
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint is not None
    assert programs == {f".venv/bin/{name}" for name in re.findall(r"\$\(BIN\)/(\w+)", lint[1])}


def test_lock_file_has_every_dependency() -> None:
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.M))
    named = re.findall(
        r'^\s+"([\w.-]+)(?:\[\w+\])?[>=<;]', (ROOT / "pyproject.toml").read_text(), re.M
    )
    assert "numpy" in named
    assert {_normal(name) for name in named} <= {_normal(name) for name in locked}


def _normal(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("patch", "--two-faced", "--keep-short-context"),
        ("validate", "--min-first", "--min-top-ranked"),
        ("compare", "--max-short-loss", "--max-short-nll"),
        ("search", "--one-face", "--shared-factors"),
        ("search", "--holdout-samples", "--holdout-haystacks"),
    ],
)
def test_old_option_answers_with_the_new_one(command: str, old: str, new: str) -> None:
    words = [sys.executable, "-m", "ggufrope_cli", command, "fixtures/nano.gguf", old]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (2, f"ggufrope: {old} is {new} now\n")
    shown = subprocess.run([*words[:4], "--help"], capture_output=True, text=True, check=True)
    assert new in shown.stdout


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (
            "thresholds = { short_nll = 0.1 }",
            "'thresholds.short_nll': it is 'short_context_nll' now",
        ),
        ('scalings = [{ scaling = "yarn", two_faced = true }]', "it is 'keep_short_context' now"),
    ],
)
def test_old_key_of_a_plan_answers_with_the_new_one(plan: str, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)):
        parse_plan(f'models = ["a.gguf"]\ncontexts = [1024]\n{plan}\n')
