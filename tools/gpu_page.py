"""The result of a check as one self-contained page: phases, needles, and speeds by cache types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { border-bottom: 1px solid #ccc; padding: .3rem .8rem; text-align: left }
.failed, .unexpected { color: #b00020 } .skipped { color: #777 }
"""
_PHASES = ("name", "status", "seconds", "gpu_percent", "gpu_peak_mib")
_PLACES = (
    *("gpu_layers", "offload_kqv", "weights_on", "cache_on"),
    *("prefill", "decode", "reason"),
)


def page(result: Mapping[str, Any]) -> str:
    """Return the HTML of a result."""
    shown = "; ".join(result.get("cards", ())) or "no GPU"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>GPU check</title><style>{_STYLE}</style></head>
<body><h1>GPU check</h1>
<p>{escape(result["created"])} · {escape(shown)}</p>
{_table((*_PHASES, "more"), map(_phase, result["phases"]), result["phases"])}
{"".join(_grids(result["speeds"]))}
<h2>Layers and K/V cache on the GPU and off it</h2>
{_table(_PLACES, ([row.get(name) for name in _PLACES] for row in result.get("places", ())))}
</body></html>
"""


def _phase(phase: Mapping[str, Any]) -> list[object]:
    details = "; ".join(f"{name}: {value}" for name, value in phase["details"].items() if value)
    more = " ".join(filter(None, (phase["reason"], details)))
    return [*(phase[name] for name in _PHASES), more]


def _grids(speeds: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table for each build and model: rows of K, columns of V, tokens per second of decode,
    the share of f16's, and what doctor said of the pair where that is not "native"."""
    for build, model in dict.fromkeys((row["build"], row["model"]) for row in speeds):
        rows = {
            tuple(row["kv"].split("/")): row
            for row in speeds
            if (row["build"], row["model"]) == (build, model)
        }
        keys, values = (dict.fromkeys(pair[place] for pair in rows) for place in (0, 1))
        cells = ([k, *(_speed(rows.get((k, v))) for v in values)] for k in keys)
        yield f"<h2>Decode of {escape(model)}, build {escape(build)}, tokens per second</h2>"
        yield _table(("K \\ V", *values), cells)


def _speed(row: Mapping[str, Any] | None) -> str | None:
    if row is None or row.get("decode") is None:
        return None if row is None else row["reason"]
    words = [f"{row['decode']:.0f}", f"({row['share']:.0%})" if row["share"] else ""]
    words += [str(row["says"])] if row["says"] not in ("native", None) else []
    return " ".join([*words, "unexpected"] if row["unexpected"] else words)


def _table(
    columns: Iterable[str],
    rows: Iterable[Iterable[object]],
    classes: Sequence[Mapping[str, Any]] = (),
) -> str:
    names = [each["status"] for each in classes]
    lines = [f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in columns)}</tr>"]
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{'—' if each is None else escape(str(each))}</td>" for each in row)
        lines.append(f'<tr class="{names[number] if names else ""}">{cells}</tr>')
    return f"<table>{''.join(lines)}</table>"
