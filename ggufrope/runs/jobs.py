"""The jobs of a plan, the cells of each job, and the selection of jobs to carry out.

A job runs, fails and is isolated as one: a model under one scaling, one pair of cache types, one
task and one seed. All its cells are known beforehand, so that a job that dies leaves no hole in a
report. Order and identity depend on the plan and the files alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from typing import TYPE_CHECKING

from ggufrope._plain import did_you_mean, encode
from ggufrope.container.ggml import KvTypes
from ggufrope.errors import RequestError
from ggufrope.evals.registry import TASKS
from ggufrope.evals.results import Cell
from ggufrope.evals.task import BaseKind, Lengths, Task, TaskName
from ggufrope.patching.request import ScalingRequest
from ggufrope.runs.plan import AS_SERVED, MIN_CONTEXT, RunPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ggufrope.runs.models import ModelFile


F16 = KvTypes(k="f16", v="f16")


def digest(content: object) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a record's canonical JSON."""
    text = json.dumps(encode(content), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The unit of execution. `id` is the same for the same work on the same file, anywhere."""

    id: str
    model: str
    scaling: ScalingRequest
    kv: KvTypes
    task: TaskName
    seed: int
    cells: tuple[Cell, ...]

    @property
    def label(self) -> str:
        return f"{self.model} · {self.scaling.name} · {self.kv} · {self.task} · seed {self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Jobs of a run to carry out: those that match every `only` term, divided into `shards`.

    A term is AXIS=PATTERN, with model, scaling, kv, task or seed as the axis. `shard` counts
    from 1.
    """

    only: tuple[str, ...] = ()
    shard: int = 1
    shards: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.shard <= self.shards:
            raise RequestError(f"shard {self.shard}/{self.shards}: expected I/N with I from 1 to N")
        for term in self.only:
            axis, equals, _ = term.partition("=")
            if not equals or axis not in _AXES:
                raise RequestError(
                    f"only {term!r}: expected AXIS=PATTERN, AXIS of {', '.join(_AXES)}"
                    f"{'' if axis in _AXES else did_you_mean(axis, _AXES)}"
                )

    @classmethod
    def parse(cls, only: tuple[str, ...] = (), shard: str | None = None) -> Selection:
        """Return the selection of `only` terms, their axes in any case, and a share written I/N.

        Raises RequestError.
        """
        split = (term.partition("=") for term in only)
        only = tuple(f"{axis.casefold()}{equals}{pattern}" for axis, equals, pattern in split)
        if shard is None:
            return cls(only=only)
        index, _, count = shard.partition("/")
        if not (index.isdecimal() and count.isdecimal()) or len(shard) > 40:
            raise RequestError(f"shard {shard!r}: expected I/N, as in 1/4")
        return cls(only=only, shard=int(index), shards=int(count))

    def choose(self, jobs: tuple[Job, ...]) -> tuple[Job, ...]:
        """Return the selected jobs, in order. Terms on one axis add up, axes narrow each other.

        Raises RequestError where no job matches the terms; a share may be empty.
        """
        wanted: dict[str, list[str]] = {}
        for term in self.only:
            axis, _, pattern = term.partition("=")
            wanted.setdefault(axis, []).append(pattern)
        matching = [
            job
            for job in jobs
            if all(
                any(fnmatchcase(_AXES[axis](job), pattern) for pattern in patterns)
                for axis, patterns in wanted.items()
            )
        ]
        if self.only and not matching:
            there = {f"{axis}={_AXES[axis](job)}": None for axis in wanted for job in jobs}
            raise RequestError(
                f"no job matches {' '.join(self.only)}; there are {', '.join(there)}"
            )
        return tuple(matching[self.shard - 1 :: self.shards])


_AXES: dict[str, Callable[[Job], str]] = {
    "model": lambda job: job.model,
    "scaling": lambda job: job.scaling.name,
    "kv": lambda job: str(job.kv),
    "task": lambda job: job.task,
    "seed": lambda job: str(job.seed),
}


def expand(
    plan: RunPlan, models: tuple[ModelFile, ...], base: ModelFile | None = None
) -> tuple[Job, ...]:
    """Return every job of a plan, those of one model together, so that it is loaded once.

    `base` is the file of the plan's base. A task that compares has no job where there is nothing to
    compare with. A task that has a control has one more job on each model: within the native
    context, of the model unscaled with an f16 cache, unless the plan measures that anyway.
    """
    return tuple(job for model in models for job in _jobs_of(plan, model, base))


def _jobs_of(plan: RunPlan, model: ModelFile, base: ModelFile | None) -> Iterator[Job]:
    tasks = [TASKS[name] for name in plan.measured]
    unscaled = ScalingRequest(scaling=model.native_scalings[0])
    for task, seed in product(tasks, plan.seeds):
        if control := _control_context(plan, model, task):
            yield _job(plan, model, unscaled, F16, task, seed, control=control)
    for request, kv, task, seed in product(plan.requests, plan.kv_types, tasks, plan.seeds):
        if task.compares_with is None:
            yield _job(plan, model, request, kv, task, seed)
        elif task.compares_with != "itself" and base is not None:
            yield _job(plan, model, request, kv, task, seed, base=base)
        elif base_of(task.compares_with, request, kv) is not None:
            yield _job(plan, model, request, kv, task, seed)


def _control_context(plan: RunPlan, model: ModelFile, task: Task) -> int | None:
    """Return the tokens of a task's control; None where it has none, or the plan measures it."""
    native, longest = model.native_context, max(plan.contexts)
    if plan.runtime.server is not None:  # it cannot be asked to leave the scaling off
        return None
    if not (plan.control and task.has_control) or native is None:
        return None
    tokens = min(native, longest, task.control_tokens or longest)
    if tokens < MIN_CONTEXT:
        return None
    measured = tokens in plan.contexts and F16 in plan.kv_types
    unscaled = [ScalingRequest(scaling=name) for name in model.native_scalings]
    return None if measured and any(each in unscaled for each in plan.requests) else tokens


def base_in_file(kind: BaseKind, request: ScalingRequest) -> ScalingRequest:
    """Return the scaling of another file that a setting is compared with, under an f16 cache: its
    own as a reference, none added as the original."""
    return request if kind == "reference" else ScalingRequest(scaling="file")


def base_of(
    kind: BaseKind, request: ScalingRequest, kv: KvTypes
) -> tuple[ScalingRequest, KvTypes] | None:
    """Return what a setting is compared with in its own file, None for the file with an f16 cache,
    which is the reference itself, and for other caches than f16 that are not compared with
    themselves.

    The original of a file as it stands is the file with its scaling off, that of a scaling added
    to it the file as it stands.
    """
    if kind == "itself":
        return (request, F16) if kv == F16 else None
    if kind == "original":
        return ScalingRequest(scaling="none" if request.scaling == "file" else "file"), F16
    if kv != F16:
        return request, F16
    return None if request.is_file else (ScalingRequest(scaling="file"), F16)


def _job(
    plan: RunPlan,
    model: ModelFile,
    request: ScalingRequest,
    kv: KvTypes,
    task: Task,
    seed: int,
    *,
    control: int | None = None,
    base: ModelFile | None = None,
) -> Job:
    """Return a job at the contexts of the plan, or as the `control` at that one."""
    contexts = plan.contexts if control is None else (control,)
    lengths = Lengths(contexts=contexts, native=model.native_context)
    cells = tuple(
        Cell(
            model=model.name,
            scaling=request.name,
            kv=str(kv) if plan.runtime.server is None else AS_SERVED,
            task=task.name,
            context_tokens=place.context_tokens,
            seed=seed,
            depth_percent=place.depth_percent,
            sample=place.sample,
            part=place.part,
            control=control is not None,
            method=place.method,
        )
        for place in task.places(plan.settings_of(task.name), lengths)
        if place.method != "spliced" or plan.runtime.server is None
    )
    content = {
        "file": [model.header_sha256, model.file_size],
        "scaling": request,
        "kv": str(kv),
        "task": task.name,
        "seed": seed,
        "cells": cells,
        "how": [
            *(plan.needle, plan.value, plan.distractors, plan.haystack),
            *(plan.text, plan.chunks, plan.ruler, plan.format, plan.thinking),
        ],
    }
    if base is not None:
        content["base"] = [base.header_sha256, base.file_size]
    return Job(
        id=digest(content),
        model=model.name,
        scaling=request,
        kv=kv,
        task=task.name,
        seed=seed,
        cells=cells,
    )
