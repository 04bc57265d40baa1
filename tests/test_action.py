"""The GitHub Action: its description fits its script, and the script does what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
SCRIPT = ROOT / "tools" / "action.sh"
STEPS = ACTION["runs"]["steps"]
CONTEXT = re.compile(r"\$\{\{(.*?)\}\}")


def test_every_input_is_described_and_used() -> None:
    said = CONTEXT.findall((ROOT / "action.yml").read_text(encoding="utf-8"))
    used = {name for text in said for name in re.findall(r"inputs\.([\w-]+)", text)}
    assert used == set(ACTION["inputs"])
    assert all(value["description"] and "default" in value for value in ACTION["inputs"].values())


def test_no_input_is_part_of_a_command() -> None:
    """An input in a command line would be read as commands."""
    commands = [step["run"] for step in STEPS if "run" in step]
    assert commands
    assert not any(CONTEXT.search(command) for command in commands)
    assert all(step["shell"] == "bash" for step in STEPS if "run" in step)


def test_the_script_reads_the_variables_that_the_action_sets() -> None:
    given = {name for step in STEPS for name in step.get("env", {})}
    assert given == set(re.findall(r"\bINPUT_[A-Z]+", SCRIPT.read_text(encoding="utf-8")))


def test_outputs_are_those_of_the_script() -> None:
    said = set(re.findall(r'echo "(\w+)=', SCRIPT.read_text(encoding="utf-8")))
    assert said == set(ACTION["outputs"])
    for name, value in ACTION["outputs"].items():
        assert value["value"] == f"${{{{ steps.ggufrope.outputs.{name} }}}}"


def test_the_reports_are_kept_also_after_a_failure() -> None:
    (upload,) = (step for step in STEPS if "uses" in step)
    assert upload["uses"] == "actions/upload-artifact@v4"
    assert "always()" in upload["if"]


@dataclass(frozen=True)
class Outcome:
    """What a runner sees of the script."""

    code: int
    summary: str
    outputs: dict[str, str]
    errors: str


def judge(folder: Path, **inputs: str) -> Outcome:
    """Run the script as a runner does, with the command line of this environment."""
    names = ("FILES", "CONFIG", "CARD", "PLAN", "SHARD")
    temp = folder / "a runner's folder"
    temp.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RUNNER_TEMP": str(temp),
        "GITHUB_OUTPUT": str(temp / "output"),
        "GITHUB_STEP_SUMMARY": str(temp / "summary"),
        **{f"INPUT_{name}": inputs.get(name.lower(), "") for name in names},
    }
    done = subprocess.run(
        ["bash", SCRIPT, "judge"], env=environment, cwd=folder, capture_output=True, text=True
    )
    found = {
        name: (temp / name).read_text(encoding="utf-8") if (temp / name).exists() else ""
        for name in ("output", "summary")
    }
    outputs = dict(line.split("=", 1) for line in found["output"].splitlines())
    return Outcome(done.returncode, found["summary"], outputs, done.stderr)


pytestmark = pytest.mark.skipif(
    os.name == "nt" or shutil.which("bash") is None,
    reason="needs bash, and paths as it has them; CI runs the action itself",
)


def test_files_are_checked(tmp_path: Path, nano: Path) -> None:
    shutil.copy(nano, tmp_path / "a model.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    outcome = judge(tmp_path, files="\n  a model.gguf  \n\nbroken.gguf\n$(touch owned)\n")
    assert outcome.code == 3
    assert not (tmp_path / "owned").exists()
    assert "## ggufrope check: failed" in outcome.summary
    assert "| a model.gguf | llama | 256 | none | ok |" in outcome.summary
    reports = Path(outcome.outputs["reports"])
    sarif = json.loads(Path(outcome.outputs["sarif"]).read_text(encoding="utf-8"))
    assert len(sarif["runs"][0]["results"]) == 2
    suite = ElementTree.parse(reports / "check.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("errors"), suite.get("failures")) == ("3", "2", "0")


def test_fine_files_pass(tmp_path: Path, nano: Path) -> None:
    outcome = judge(tmp_path, files=str(nano))
    assert outcome.code == 0, outcome.errors
    assert "## ggufrope check: passed" in outcome.summary


def test_a_card_is_compared(tmp_path: Path, nano: Path) -> None:
    (tmp_path / "README.md").write_text("no card")
    outcome = judge(tmp_path, files=str(nano), card="README.md")
    assert outcome.code == 2
    assert "no card of ggufrope in it" in outcome.errors


def test_nothing_to_do_is_a_mistake(tmp_path: Path) -> None:
    outcome = judge(tmp_path, files=" \n")
    assert outcome.code == 2
    assert "give files to check, or a plan" in outcome.errors
    assert not outcome.outputs


@pytest.mark.llama
@pytest.mark.parametrize(("recall", "code"), [(0.5, 0), (1.0, 1)])
def test_a_plan_is_gated(tmp_path: Path, nano: Path, recall: float, code: int) -> None:
    plan = tmp_path / "gate.toml"
    plan.write_text(
        f'models = ["{nano.as_posix()}"]\ncontexts = [256]\ntasks = ["needle"]\ndepths = 2\n'
        f"samples = 8\ncontrol = false\n[thresholds]\nrecall = {recall}\n"
    )
    outcome = judge(tmp_path, plan="gate.toml", shard="1/1")
    assert outcome.code == code, outcome.errors
    assert "needle" in outcome.summary
    reports = Path(outcome.outputs["reports"])
    assert (reports / "gate.html").is_file()
    assert ElementTree.parse(reports / "gate.xml").getroot().tag == "testsuites"
    assert "sarif" not in outcome.outputs


def test_a_plan_that_is_none_has_no_report(tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text("models = 3\n")
    outcome = judge(tmp_path, plan="gate.toml")
    assert outcome.code == 2
    assert outcome.errors.count("ggufrope:") == 1
