"""The table of findings in docs/models.md has every code of the source, and its severities."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
SEVERITIES = {"error", "warning", "info"}


def in_source() -> dict[str, set[str]]:
    """Return the severities of each code that a check of the library yields."""
    found: dict[str, set[str]] = defaultdict(set)
    for room in ("rope", "patching", "container", "report", "."):
        for path in sorted((ROOT / "ggufrope" / room).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    code, severity = code_and_severity(node)
                    if code is not None:
                        found[code] |= severity
    return dict(found)


def code_and_severity(call: ast.Call) -> tuple[str | None, set[str]]:
    """Return what a call says of a finding: (None, …) where it makes none, or not by a literal."""
    assert isinstance(call.func, ast.Name)
    severity = call.func.id.removeprefix("_")
    if severity in SEVERITIES and len(call.args) == 3:
        return literal(call.args[0]), {severity}
    if severity != "Finding":
        return None, set()
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    severities = {
        node.value for node in ast.walk(given["severity"]) if isinstance(node, ast.Constant)
    }
    return literal(given["code"]), {str(each) for each in severities} & SEVERITIES


def literal(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def on_the_page() -> dict[str, set[str]]:
    """Return the severities of each code in the table of the page."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| ([a-z, ]+) \| .+ \|$", PAGE.read_text("utf-8"), re.M)
    codes = [code for code, _ in rows]
    assert len(codes) == len(set(codes))
    return {code: set(severities.split(", ")) for code, severities in rows}


def test_every_finding_is_on_the_page_with_its_severity() -> None:
    source, page = in_source(), on_the_page()
    assert len(source) > 25
    assert sorted(source.keys() - page.keys()) == []
    assert sorted(page.keys() - source.keys()) == []
    assert {code: page[code] for code in source} == source


def test_the_table_is_in_the_order_of_severity_and_name() -> None:
    order = ("error", "warning", "info")
    worst = [
        (min(map(order.index, severities)), code) for code, severities in on_the_page().items()
    ]
    assert worst == sorted(worst)
