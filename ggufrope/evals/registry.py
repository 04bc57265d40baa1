"""The tasks by their names: a new task is one module and one entry here.

The names themselves are `ggufrope.evals.task.TaskName`, which a plan reads without loading this.
"""

from __future__ import annotations

from collections.abc import Mapping

from ggufrope.evals.damage import DAMAGE
from ggufrope.evals.divergence import DIVERGENCE
from ggufrope.evals.kv_cache import KV_CACHE
from ggufrope.evals.multikey import MULTIKEY
from ggufrope.evals.needle import NEEDLE, PASSKEY
from ggufrope.evals.perplexity import PERPLEXITY
from ggufrope.evals.rounding import ROUNDING
from ggufrope.evals.ruler.task import RULER
from ggufrope.evals.short_context import SHORT_CONTEXT
from ggufrope.evals.task import Task, TaskName

TASKS: Mapping[TaskName, Task] = {
    **{
        task.name: task
        for task in (
            *(NEEDLE, PASSKEY, MULTIKEY, RULER),
            *(PERPLEXITY, DIVERGENCE, ROUNDING, SHORT_CONTEXT, KV_CACHE),
        )
    },
    **DAMAGE,
}
