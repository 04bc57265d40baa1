"""A check of model files as SARIF 2.1.0, which code scanning services and editors show.

The format is that of OASIS (sarif-schema-2.1.0). Strings of a file are escaped, and paths are
percent-encoded from their bytes.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ggufrope._format import safe
from ggufrope.container.remote import Place, RemoteFile

if TYPE_CHECKING:
    from ggufrope.patching.check import CheckReport, FileCheck
    from ggufrope.rope.lint import Finding

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def sarif(report: CheckReport, *, root: Path | None = None) -> str:
    """Return every finding of `report` as the text of a SARIF file.

    Paths below `root`, the current folder where None, are relative to it; services take it for the
    root of the repository.
    """
    base = Path.cwd() if root is None else root
    codes = sorted({finding.code for file in report.files for finding in file.findings})
    results = [
        _result(file, finding, codes, base) for file in report.files for finding in file.findings
    ]
    driver = {
        "name": "ggufrope",
        "version": version("ggufrope"),
        "rules": [_rule(code) for code in codes],
    }
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
        ],
    }
    return json.dumps(log, indent=2) + "\n"


def _result(file: FileCheck, finding: Finding, codes: list[str], base: Path) -> dict[str, Any]:
    key = safe(finding.key).replace("\n", "\\n")
    # A GGUF file has no lines; GitHub's code scanning shows no result without one.
    place: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": artifact(file.place, base),
            "region": {"startLine": 1},
        }
    }
    if key:
        place["logicalLocations"] = [{"fullyQualifiedName": key}]
    return {
        "ruleId": finding.code,
        "ruleIndex": codes.index(finding.code),
        "level": _LEVELS[finding.severity],
        "message": {"text": _message(finding.message)},
        "locations": [place],
        "partialFingerprints": {"findingKey/v1": f"{finding.code}:{key}"},
    }


def _message(text: str) -> str:
    """Return a message that nothing in it turns into a link or a placeholder (3.11.5, 3.11.6)."""
    return safe(text).replace("{", "{{").replace("}", "}}").replace("](", "] (")


def artifact(place: Place, base: Path) -> dict[str, str]:
    """Return the artifactLocation of a file: relative to `base` below it, else as a URI."""
    if isinstance(place, RemoteFile):
        return {"uri": quote(str(place), safe="/:")}
    whole = Path(os.path.abspath(place))  # noqa: PTH100  # without following links, as it was named
    try:
        relative = whole.relative_to(base)
    except ValueError:
        return {"uri": whole.as_uri()}
    return {"uri": quote(os.fsencode(relative.as_posix())), "uriBaseId": "%SRCROOT%"}


def _rule(code: str) -> dict[str, Any]:
    """Return the rule of a code of findings; code scanning asks for all of these texts."""
    words = code.replace("-", " ").capitalize()
    return {
        "id": code,
        "name": "".join(word.capitalize() for word in code.split("-")),
        "shortDescription": {"text": words},
        "fullDescription": {"text": f"{words}, in the RoPE settings or the layout of a GGUF file."},
        "help": {"text": "ggufrope inspect FILE shows it beside the settings that it is about."},
    }
