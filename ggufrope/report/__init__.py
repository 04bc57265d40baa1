"""A stored run, told: as data for a terminal, as JSON, CSV, JUnit XML or a page."""

from .comparison import Comparison, compare
from .exports import to_csv, to_json, to_junit, to_plain
from .judging import SettingVerdict
from .record import RunReport, report_of
from .summary import SummaryRow

__all__ = [
    "Comparison",
    "RunReport",
    "SettingVerdict",
    "SummaryRow",
    "compare",
    "report_of",
    "to_csv",
    "to_json",
    "to_junit",
    "to_plain",
]
