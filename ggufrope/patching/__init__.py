"""A wish -> a PatchPlan -> a PatchReceipt; and the same wish tried with nothing written.

Names are imported when they are first used, as in `container`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

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


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
