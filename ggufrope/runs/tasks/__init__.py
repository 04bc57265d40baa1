"""The tasks of a plan as evaluations, and their results as cells.

One function a task: it builds the evaluation from the plan, runs it for the cells still to do, and
turns what it yields into metrics. Nothing else in `runs` knows what a task measures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .cache import kv_cache
from .needle import needle, passkey
from .request import Measure, Request
from .ruler import ruler
from .short import short_context
from .text import divergence, perplexity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..plan import TaskName

MEASURES: Mapping[TaskName, Measure] = {
    "needle": needle,
    "passkey": passkey,
    "ruler": ruler,
    "perplexity": perplexity,
    "divergence": divergence,
    "short-context": short_context,
    "kv-cache": kv_cache,
}

__all__ = ["MEASURES", "Measure", "Request"]
