"""The result of a check as one self-contained page: the phases, and the report of the run."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { border-bottom: 1px solid #ccc; padding: .3rem .8rem; text-align: left }
.failed { color: #b00020 } .skipped { color: #777 }
iframe { border: 1px solid #ccc; height: 85vh; width: 100% }
"""
_COLUMNS = ("phase", "status", "seconds", "GPU %", "GPU peak MiB", "more")


def page(result: Mapping[str, Any], report: str | None) -> str:
    """Return the HTML of a result; `report` is the page of the run, where there is one."""
    shown = ", ".join(
        f"{card['name']} ({card['memory_mib']} MiB, driver {card['driver']})"
        for card in result.get("cards", ())
    )
    frame = "<p>No run was stored.</p>"
    if report is not None:
        frame = f'<iframe title="KV cache matrix" srcdoc="{escape(report)}"></iframe>'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>GPU check</title><style>{_STYLE}</style></head>
<body><h1>GPU check</h1>
<p>{escape(result["created"])} · {escape(shown) or "no GPU"}</p>
<table><tr>{"".join(f"<th>{name}</th>" for name in _COLUMNS)}</tr>
{"".join(map(_row, result["phases"]))}</table>
<h2>KV cache matrix</h2>
{frame}
</body></html>
"""


def _row(phase: Mapping[str, Any]) -> str:
    details = "; ".join(f"{name}: {value}" for name, value in phase["details"].items() if value)
    more = " ".join(filter(None, (phase["reason"], details)))
    cells = (
        phase["name"],
        phase["status"],
        f"{phase['seconds']:.1f}",
        phase["gpu_percent"],
        phase["gpu_peak_mib"],
        more,
    )
    written = "".join(f"<td>{'—' if cell is None else escape(str(cell))}</td>" for cell in cells)
    return f'<tr class="{phase["status"]}">{written}</tr>\n'
