"""Make a GGUF model reach further, prove that it did, and never break the file.

The names of this package are what a script needs. Each is imported when it is first used, so that
`import ggufrope` itself costs milliseconds. The modules below it have the rest.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggufrope.advice.advise import advise
    from ggufrope.backends.opened import open_model
    from ggufrope.backends.runtimes import FakeBackend, LlamaBackend
    from ggufrope.backends.served import open_server
    from ggufrope.backends.settings import RuntimeSettings
    from ggufrope.container.compare import diff, verify
    from ggufrope.container.hub import fetch
    from ggufrope.container.location import find, locate
    from ggufrope.container.recovery import undo
    from ggufrope.errors import GgufRopeError
    from ggufrope.evals.thresholds import Thresholds
    from ggufrope.patching.check import check
    from ggufrope.patching.command import patch_command
    from ggufrope.patching.exporting import export_model
    from ggufrope.patching.inspection import inspect, read_model
    from ggufrope.patching.plan import apply, plan_patch
    from ggufrope.patching.request import ScalingRequest
    from ggufrope.patching.sarif import sarif
    from ggufrope.proof import prove
    from ggufrope.report.conclusion import conclude
    from ggufrope.report.record import RunReport, run
    from ggufrope.rope.architectures import use_table
    from ggufrope.rope.export import export
    from ggufrope.runs.plan import RunPlan, read_plan
    from ggufrope.runtime.context import Context
    from ggufrope.runtime.engine import use_llama
    from ggufrope.runtime.model import Model
    from ggufrope.runtime.settings import ContextSettings
    from ggufrope.search.plan import SearchPlan
    from ggufrope.search.session import run_search
    from ggufrope.server.served import measure_server

_HOMES = {
    "advice.advise": ("advise",),
    "backends.opened": ("open_model",),
    "backends.runtimes": ("FakeBackend", "LlamaBackend"),
    "backends.served": ("open_server",),
    "backends.settings": ("RuntimeSettings",),
    "container.compare": ("diff", "verify"),
    "container.hub": ("fetch",),
    "container.location": ("find", "locate"),
    "container.recovery": ("undo",),
    "errors": ("GgufRopeError",),
    "evals.thresholds": ("Thresholds",),
    "patching.check": ("check",),
    "patching.command": ("patch_command",),
    "patching.exporting": ("export_model",),
    "patching.inspection": ("inspect", "read_model"),
    "patching.plan": ("apply", "plan_patch"),
    "patching.request": ("ScalingRequest",),
    "patching.sarif": ("sarif",),
    "proof": ("prove",),
    "report.conclusion": ("conclude",),
    "report.record": ("RunReport", "run"),
    "rope.architectures": ("use_table",),
    "rope.export": ("export",),
    "runs.plan": ("RunPlan", "read_plan"),
    "runtime.context": ("Context",),
    "runtime.engine": ("use_llama",),
    "runtime.model": ("Model",),
    "runtime.settings": ("ContextSettings",),
    "search.plan": ("SearchPlan",),
    "search.session": ("run_search",),
    "server.served": ("measure_server",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Context",
    "ContextSettings",
    "FakeBackend",
    "GgufRopeError",
    "LlamaBackend",
    "Model",
    "RunPlan",
    "RunReport",
    "RuntimeSettings",
    "ScalingRequest",
    "SearchPlan",
    "Thresholds",
    "advise",
    "apply",
    "check",
    "conclude",
    "diff",
    "export",
    "export_model",
    "fetch",
    "find",
    "inspect",
    "locate",
    "measure_server",
    "open_model",
    "open_server",
    "patch_command",
    "plan_patch",
    "prove",
    "read_model",
    "read_plan",
    "run",
    "run_search",
    "sarif",
    "undo",
    "use_llama",
    "use_table",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("ggufrope")
        except PackageNotFoundError:  # a source tree on the path, without installation
            return "not installed"
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    setattr(sys.modules[__name__], name, value)
    return value
