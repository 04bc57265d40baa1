"""A wish -> a PatchPlan -> a PatchReceipt; and the same wish tried with nothing written.

Names are imported when they are first used, as in `container`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufrope._lazy import importer

if TYPE_CHECKING:
    from ggufrope.patching.inspection import Inspection, StoredModel, inspect, read_model
    from ggufrope.patching.plan import Edit, PatchPlan, PatchReceipt, apply, plan_patch
    from ggufrope.patching.trial import trial_overrides
    from ggufrope.patching.wish import SCHEMES, Scheme, Target, Wish, resolve

_HOMES = {
    "inspection": (
        "Inspection",
        "StoredModel",
        "inspect",
        "read_model",
    ),
    "plan": (
        "Edit",
        "PatchPlan",
        "PatchReceipt",
        "apply",
        "plan_patch",
    ),
    "trial": ("trial_overrides",),
    "wish": (
        "SCHEMES",
        "Scheme",
        "Target",
        "Wish",
        "resolve",
    ),
}

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

__getattr__ = importer(__name__, _HOMES)
