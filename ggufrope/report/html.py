"""One self-contained page: charts as inline SVG, no script, nothing to fetch."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from ggufrope.errors import MissingDependencyError
from ggufrope.report import charts
from ggufrope.report.page import page

if TYPE_CHECKING:
    from ggufrope.report.comparison import Comparison
    from ggufrope.report.record import RunReport

_BIDI = {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def to_html(report: RunReport, *, against: Comparison | None = None) -> str:
    """The report as one HTML document, `against` an earlier run where one is given.

    Raises MissingDependencyError without the `report` extra.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise MissingDependencyError("HTML needs jinja2: pip install 'ggufrope[report]'") from error

    def printable(value: object) -> object:
        """Text that shows as what it is: no undecodable bytes, no reordering of what is around."""
        if not isinstance(value, str) or isinstance(value, Markup):
            return value
        return value.encode("utf-8", "backslashreplace").decode().translate(_BIDI)

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ggufrope", "report"),
        autoescape=True,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # What is not escaped is ours: the style sheet, and drawings in which text is escaped already.
    style = Markup(resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8"))
    content = page(report, draw=lambda spec: Markup(charts.draw(spec)), against=against)
    return environment.get_template("page.html.jinja").render(style=style, **content)
