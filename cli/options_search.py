"""The options of `search`, and the plan they come to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from .options import option, token_option
from .values import seconds

if TYPE_CHECKING:
    from ggufrope.search.plan import SearchPlan

_WHAT, _HOW, _RUN = "What is searched", "How candidates are judged", "How it is run"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """What the options said; `plan` makes the SearchPlan of it."""

    target_ctx: Annotated[
        int,
        token_option("--target-ctx", "Context to reach: 16384 or 16k.", _WHAT),
    ]
    orig_ctx: Annotated[
        int | None,
        token_option("--orig-ctx", "Context it was trained for; default: the file's.", _WHAT),
    ] = None
    space: Annotated[
        str,
        option(
            "--space",
            "longrope: every pair; longrope2: from the critical pair on; yarn: its parameters.",
            "SPACE",
            _WHAT,
        ),
    ] = "longrope"
    attention: Annotated[
        str,
        option("--attention", "Attention factor: free, formula, or none (1).", "CHOICE", _WHAT),
    ] = "free"
    shared_factors: Annotated[
        bool,
        typer.Option(
            "--shared-factors",
            help="Use the factors in short contexts too; default: factors of their own.",
            rich_help_panel=_WHAT,
        ),
    ] = False
    fitness: Annotated[
        str, option("--fitness", "needle (answer tokens only) or perplexity.", "FITNESS", _HOW)
    ] = "needle"
    text: Annotated[
        Path | None,
        option("--text", "Text of perplexity; default: Python's help topics.", "FILE", _HOW),
    ] = None
    samples: Annotated[
        int, option("--samples", "Samples at the target for each finalist.", "N", _HOW)
    ] = 4
    screening_samples: Annotated[
        int, option("--screening-samples", "Samples for each candidate.", "N", _HOW)
    ] = 2
    screening_ctx: Annotated[
        int | None,
        token_option("--screening-ctx", "Context of the screening; default: the target.", _HOW),
    ] = None
    holdout_samples: Annotated[
        int, option("--holdout-samples", "Unseen samples the winner is held to.", "N", _HOW)
    ] = 16
    optimizer: Annotated[
        str, option("--optimizer", "cma, or evolution as in the paper.", "NAME", _RUN)
    ] = "cma"
    candidates: Annotated[
        int, option("--candidates", "Candidates to screen at most.", "N", _RUN)
    ] = 200
    finalists: Annotated[
        int, option("--finalists", "Candidates that go on to the full target.", "N", _RUN)
    ] = 5
    budget: Annotated[
        str | None,
        option("--budget", "Time for all of it: 90s, 45m, 3h.", "TIME", _RUN),
    ] = None
    seed: Annotated[int, option("--seed", "Seed of every choice and prompt.", "N", _RUN)] = 0

    def plan(self) -> SearchPlan:
        """The plan. Raises RequestError naming the option."""
        from ggufrope.evals.texts import read_text
        from ggufrope.search.plan import SearchPlan

        return SearchPlan(
            target_context=self.target_ctx,
            original_context=self.orig_ctx,
            space=cast("Any", self.space),
            attention=cast("Any", self.attention),
            fitness=cast("Any", self.fitness),
            optimizer=cast("Any", self.optimizer),
            candidates=self.candidates,
            finalists=self.finalists,
            samples=self.samples,
            screening_samples=self.screening_samples,
            screening_context=self.screening_ctx,
            holdout_samples=self.holdout_samples,
            seed=self.seed,
            budget_seconds=None if self.budget is None else seconds(self.budget, "--budget"),
            text=None if self.text is None else read_text(self.text),
            keep_short_context=not self.shared_factors,
        )
