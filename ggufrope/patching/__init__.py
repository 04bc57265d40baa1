"""A wish -> a PatchPlan -> a PatchReceipt; and the same wish tried with nothing written."""

from ggufrope.patching.inspection import Inspection, StoredModel, inspect, read_model
from ggufrope.patching.plan import Edit, PatchPlan, PatchReceipt, apply, plan_patch
from ggufrope.patching.trial import trial_overrides
from ggufrope.patching.wish import SCHEMES, Scheme, Target, Wish, resolve

__all__ = [
    "SCHEMES",
    "Edit",
    "Inspection",
    "PatchPlan",
    "PatchReceipt",
    "Scheme",
    "StoredModel",
    "Target",
    "Wish",
    "apply",
    "inspect",
    "plan_patch",
    "read_model",
    "resolve",
    "trial_overrides",
]
