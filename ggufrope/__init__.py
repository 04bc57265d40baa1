"""Make a GGUF model reach further, prove that it did, and never break the file.

The names of this package are what a script needs; each is imported when it is first used, so that
`import ggufrope` itself costs milliseconds. The packages below it have the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggufrope._lazy import importer

if TYPE_CHECKING:
    from ggufrope.advice import advise
    from ggufrope.container import locate, undo, verify
    from ggufrope.errors import GgufRopeError
    from ggufrope.evals import Thresholds
    from ggufrope.execution import open_subject, run
    from ggufrope.patching import Wish, apply, inspect, plan_patch
    from ggufrope.patching.wishes import Trial
    from ggufrope.report import RunReport
    from ggufrope.runs.plan import RunPlan, RuntimeSettings
    from ggufrope.runs.planfile import read_plan
    from ggufrope.runtime import Context, ContextSettings, Model

_HOMES = {
    "advice": ("advise",),
    "container": ("locate", "undo", "verify"),
    "errors": ("GgufRopeError",),
    "evals": ("Thresholds",),
    "execution": ("open_subject", "run"),
    "patching": ("Wish", "apply", "inspect", "plan_patch"),
    "patching.wishes": ("Trial",),
    "report": ("RunReport",),
    "runs.plan": ("RunPlan", "RuntimeSettings"),
    "runs.planfile": ("read_plan",),
    "runtime": ("Context", "ContextSettings", "Model"),
}

__all__ = [
    "Context",
    "ContextSettings",
    "GgufRopeError",
    "Model",
    "RunPlan",
    "RunReport",
    "RuntimeSettings",
    "Thresholds",
    "Trial",
    "Wish",
    "advise",
    "apply",
    "inspect",
    "locate",
    "open_subject",
    "plan_patch",
    "read_plan",
    "run",
    "undo",
    "verify",
]

_import = importer(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ggufrope")
    return _import(name)
