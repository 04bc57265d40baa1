"""The tasks of a plan by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufrope.runs.tasks.cache import kv_cache
from ggufrope.runs.tasks.needle import needle, passkey
from ggufrope.runs.tasks.ruler import ruler
from ggufrope.runs.tasks.short import short_context
from ggufrope.runs.tasks.text import divergence, perplexity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ggufrope.evals.task import TaskName
    from ggufrope.runs.tasks.request import Measure

MEASURES: Mapping[TaskName, Measure] = {
    "needle": needle,
    "passkey": passkey,
    "ruler": ruler,
    "perplexity": perplexity,
    "divergence": divergence,
    "short-context": short_context,
    "kv-cache": kv_cache,
}
