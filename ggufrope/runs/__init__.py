"""A plan -> jobs -> cells kept as they finish; carried out by one process, several or a cluster."""

from ggufrope.patching.wishes import Trial
from ggufrope.runs.cells import Cell, CellResult, Metric
from ggufrope.runs.jobs import Job, Selection, expand
from ggufrope.runs.models import ModelFile, resolve_models
from ggufrope.runs.plan import RunPlan
from ggufrope.runs.planfile import read_plan
from ggufrope.runs.processes import Slot, run_in_processes
from ggufrope.runs.store import RunStore
from ggufrope.runs.work import work

__all__ = [
    "Cell",
    "CellResult",
    "Job",
    "Metric",
    "ModelFile",
    "RunPlan",
    "RunStore",
    "Selection",
    "Slot",
    "Trial",
    "expand",
    "read_plan",
    "resolve_models",
    "run_in_processes",
    "work",
]
