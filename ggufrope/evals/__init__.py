"""What is asked of a model, and how the answers are judged.

Every evaluation is a `Task`: made from a frozen plan, run with a model and a function that opens
contexts, yielding one result a cell as the cell finishes.

    task = NeedleTask(NeedlePlan(lengths=(4096, 8192), depths=(0, 50, 100)))
    for result in task.run(model, open_context, done=stored_keys, progress=bar.advance):
        store(result.key, result)

`open_context(n_ctx)` closes over every other setting of the context: RoPE, cache types, devices.
A failure of the runtime is a result without a score, with its reason. Nothing here knows
llama.cpp: models and contexts are whatever satisfies `protocol`. The RULER-style tasks are in
`evals.ruler`.
"""

from ggufrope.evals.cache import CachePlan, CacheResult, CacheTask
from ggufrope.evals.divergence import (
    Divergence,
    DivergencePlan,
    DivergenceResult,
    DivergenceTask,
)
from ggufrope.evals.metrics import Mean, Proportion
from ggufrope.evals.needle import NeedleResult, NeedleTask, Recall, recall, recall_by_length
from ggufrope.evals.needle_plan import NeedleCell, NeedlePlan, passkey_plan
from ggufrope.evals.perplexity import (
    Bucket,
    Perplexity,
    PerplexityPlan,
    PerplexityResult,
    PerplexityTask,
    perplexity_of,
)
from ggufrope.evals.shortcontext import (
    ShortContext,
    ShortContextPlan,
    ShortContextResult,
    ShortContextTask,
    short_context,
)
from ggufrope.evals.texts import Text, read_text, reference_text
from ggufrope.evals.types import OpenContext, Result, Sample, Score, Task
from ggufrope.evals.verdict import Check, Evidence, Thresholds, Verdict, judge

__all__ = [
    "Bucket",
    "CachePlan",
    "CacheResult",
    "CacheTask",
    "Check",
    "Divergence",
    "DivergencePlan",
    "DivergenceResult",
    "DivergenceTask",
    "Evidence",
    "Mean",
    "NeedleCell",
    "NeedlePlan",
    "NeedleResult",
    "NeedleTask",
    "OpenContext",
    "Perplexity",
    "PerplexityPlan",
    "PerplexityResult",
    "PerplexityTask",
    "Proportion",
    "Recall",
    "Result",
    "Sample",
    "Score",
    "ShortContext",
    "ShortContextPlan",
    "ShortContextResult",
    "ShortContextTask",
    "Task",
    "Text",
    "Thresholds",
    "Verdict",
    "judge",
    "passkey_plan",
    "perplexity_of",
    "read_text",
    "recall",
    "recall_by_length",
    "reference_text",
    "short_context",
]
