"""Thirteen RULER-style tasks: RULER's structure, sizing and scoring, in our own words."""

from ggufrope.evals.ruler.qa import QuestionSet, read_hotpotqa, read_squad
from ggufrope.evals.ruler.scoring import (
    BASE_THRESHOLD,
    CHAT_THRESHOLD,
    RulerLength,
    RulerResult,
    by_length,
    effective_length,
    effective_length_by_share,
)
from ggufrope.evals.ruler.specs import RULER_TASKS, RulerSpec
from ggufrope.evals.ruler.task import RulerPlan, RulerTask
from ggufrope.evals.ruler.wording import read_templates

__all__ = [
    "BASE_THRESHOLD",
    "CHAT_THRESHOLD",
    "RULER_TASKS",
    "QuestionSet",
    "RulerLength",
    "RulerPlan",
    "RulerResult",
    "RulerSpec",
    "RulerTask",
    "by_length",
    "effective_length",
    "effective_length_by_share",
    "read_hotpotqa",
    "read_squad",
    "read_templates",
]
