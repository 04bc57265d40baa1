"""What rounding alone does: how far a model strays from itself when nothing of it changes.

A quantized model rounds its activations at every layer, so the least change of a number sends
later roundings the other way, and by the last layer the tokens' probabilities differ. How much is a
property of the file, the build and the device, not of what was changed. It is measured here as the
divergence from the same model with a RoPE base that differs in its last bits
(`ggufrope.rope.overrides.nudged`), and any divergence of the same text has that much in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ggufrope.evals.divergence import DIVERGENCE, strayed
from ggufrope.evals.results import estimate
from ggufrope.evals.task import Task, one_cell_per_length

if TYPE_CHECKING:
    from ggufrope.evals.divergence import Divergence
    from ggufrope.evals.results import CellResult, Metric
    from ggufrope.evals.task import TaskRequest


def _metrics(found: Divergence) -> tuple[Metric, ...]:
    return (estimate("rounding", found.divergence), estimate("same_top", found.same_top))


def _run(request: TaskRequest) -> Iterator[CellResult]:
    return strayed(request, _metrics, (("base", request.required_base().name),))


ROUNDING = Task(
    name="rounding",
    places=one_cell_per_length,
    tokens=DIVERGENCE.tokens,
    run=_run,
    compares_with="itself",
)
"""Divergence of the model with an f16 cache from itself, at each length."""
