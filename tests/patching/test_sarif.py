"""SARIF 2.1.0: the structure that the schema and code scanning services require."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

from fixtures.make import build
from ggufrope.patching.check import check
from ggufrope.patching.sarif import artifact, sarif

LEVELS = {"none", "note", "warning", "error"}


def require_sarif(log: dict[str, Any]) -> list[dict[str, Any]]:
    """Check what sarif-schema-2.1.0.json requires of these objects; return the results."""
    assert set(log) == {"$schema", "version", "runs"}
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    assert set(run) <= {"tool", "columnKind", "results"}
    assert run["columnKind"] in {"utf16CodeUnits", "unicodeCodePoints"}
    driver = run["tool"]["driver"]
    assert driver["name"] == "ggufrope"
    assert isinstance(driver["version"], str)
    rules = [rule["id"] for rule in driver["rules"]]
    for rule in driver["rules"]:
        assert all(rule[key]["text"] for key in ("shortDescription", "fullDescription", "help"))
    assert len(set(rules)) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in LEVELS
        assert result["message"]["text"]
        (location,) = result["locations"]
        physical = location["physicalLocation"]
        uri = physical["artifactLocation"]["uri"]
        assert uri.isascii()
        assert not set(uri) & set(' "<>\\^`{|}\n\x1b')
        assert physical["region"]["startLine"] >= 1
        assert all(isinstance(each, str) for each in result["partialFingerprints"].values())
    results: list[dict[str, Any]] = run["results"]
    return results


def test_every_finding_is_a_result(tmp_path: Path) -> None:
    keys = {"rope.scaling.type": "yarn", "rope.scaling.yarn_beta_fast": 8.0}
    build("qwen2", tmp_path / "m.gguf", keys=keys)
    build("llama", tmp_path / "zero.gguf", context=0)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    build("qwen3", tmp_path / "pooled.gguf", keys={"pooling_type": 3})
    report = check(tmp_path)
    results = require_sarif(json.loads(sarif(report, root=tmp_path)))
    found = [(file.place.name, finding.code) for file in report.files for finding in file.findings]
    assert len(found) > 4
    assert found == [
        (r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"], r["ruleId"])
        for r in results
    ]
    levels = {result["ruleId"]: result["level"] for result in results}
    assert levels["unreadable"] == levels["no-context-length"] == "error"
    assert levels["yarn-without-factor"] == "warning"
    assert levels["no-generation"] == "note"


def test_a_good_file_has_no_result(tmp_path: Path) -> None:
    build("qwen2", tmp_path / "m.gguf")
    assert require_sarif(json.loads(sarif(check(tmp_path)))) == []


def test_hostile_names_and_values(tmp_path: Path) -> None:
    name = b"\x1b[1m \xff%41:a?b#c\n.gguf"
    keys = {"rope.scaling.type": "a word [x](http://y) {0}"}
    content = build("qwen2", tmp_path / "m.gguf", keys=keys)[0].read_bytes()
    (tmp_path / "m.gguf").unlink()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(
        content.replace(b"a word", b"\x1b[2J\xff ")
    )
    written = sarif(check(tmp_path), root=tmp_path)
    written.encode("ascii")
    results = require_sarif(json.loads(written))
    messages = "".join(each["message"]["text"] for each in results)
    assert "\x1b" not in messages
    assert r"\x1b[2J" in messages
    assert "[x] (http://y) {{0}}" in messages
    result = results[0]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert unquote_to_bytes(uri) == name
    assert ":" not in uri


def test_paths_outside_the_root_are_file_uris(tmp_path: Path) -> None:
    inside = artifact(tmp_path / "a b" / "m.gguf", tmp_path)
    assert inside == {"uri": "a%20b/m.gguf", "uriBaseId": "%SRCROOT%"}
    outside = artifact(tmp_path / "m.gguf", tmp_path / "elsewhere")
    assert outside["uri"].startswith("file:///")
    assert "uriBaseId" not in outside


def test_the_command_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ggufrope_cli.app import main

    build("llama", tmp_path / "zero.gguf", context=0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        main(["check", "zero.gguf", "--sarif", "out.sarif"])
    assert leaving.value.code == 1
    (result, *_) = require_sarif(json.loads(Path("out.sarif").read_text("ascii")))
    place = result["locations"][0]["physicalLocation"]["artifactLocation"]
    assert place == {"uri": "zero.gguf", "uriBaseId": "%SRCROOT%"}
