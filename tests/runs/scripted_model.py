"""A model under test whose file says how it behaves, and runs of such models.

A line of the file is an instruction: "forgets 100" (looks back 100 tokens at most; "forgets 100
none" only under the scaling "none"), "refuses q4_0", "fails 256" (an error beyond 256 tokens),
"dies SIGKILL 256", "hogs 256" (runs out of memory beyond), "prints 256" (writes to standard output
beyond), "sleeps 0.2". Worker processes import this module by name.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufrope.errors import DecodeError, MissingDependencyError, UnsupportedCacheError
from ggufrope.runs.driver import InlineTransport, ProcessTransport, Transport, drive
from ggufrope.runs.store import RunStore
from ggufrope.runtime.fake import FakeContext, FakeModel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ggufrope.backends.opened import OpenModel
    from ggufrope.backends.settings import RuntimeSettings
    from ggufrope.container.ggml import KvTypes
    from ggufrope.lm import OpenContext, Progress
    from ggufrope.patching.request import ScalingRequest

Script = dict[str, str]

OPENER = "scripted_model:open_model"
opened: list[str] = []
"""Names of the files opened in this process."""


class ScriptedContext(FakeContext):
    def __init__(self, model: FakeModel, n_ctx: int, script: Script) -> None:
        super().__init__(model, n_ctx=n_ctx)
        self._script = script

    def extend(self, tokens: Sequence[int], *, progress: Progress | None = None) -> None:
        self._act(self.position + len(tokens))
        super().extend(tokens, progress=progress)

    def _act(self, reached: int) -> None:
        if reached > int(self._script.get("fails", reached)):
            raise DecodeError("the batch of 512 tokens failed")
        name, after = self._script.get("dies", f"- {reached}").split()
        if reached > int(after):
            sys.stderr.write("GGML_ASSERT(n_tokens > 0) failed\n")
            sys.stderr.flush()
            os.kill(os.getpid(), getattr(signal, name))
        if reached > int(self._script.get("hogs", reached)):
            limit = 1 << 31
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            self._hoard = np.ones(limit // 8)
        if reached > int(self._script.get("prints", reached)):
            sys.stdout.write('{"Finished": {}}\n')
            sys.stdout.flush()
            os.write(1, b"llama.cpp: loaded\n")
        time.sleep(float(self._script.get("sleeps", 0)))


class ScriptedModel:
    def __init__(self, path: Path, runtime: RuntimeSettings) -> None:
        self.model = FakeModel()
        self.details = {"llama.cpp": "scripted"}
        lines = path.read_text().splitlines()
        self._script: Script = {}
        for line in filter(None, lines):
            name, _, value = line.partition(" ")
            self._script[name] = value

    def contexts(
        self, request: ScalingRequest, kv: KvTypes, *, largest: int, nudged: bool = False
    ) -> OpenContext:
        horizon, _, scaling = self._script.get("forgets", "").partition(" ")
        forgetful = horizon and scaling in ("", request.scaling)

        def open_context(n_ctx: int) -> ScriptedContext:
            if self._script.get("refuses") in (kv.k, kv.v):
                raise UnsupportedCacheError(f"this build cannot run {kv}")
            # The tokens are shared, how far back the model looks is not.
            model = FakeModel(horizon=int(horizon) if forgetful else None)
            model._tokens, model._pieces = self.model._tokens, self.model._pieces
            return ScriptedContext(model, n_ctx, self._script)

        return open_context

    def close(self) -> None:
        pass


def open_model(path: Path, runtime: RuntimeSettings) -> ScriptedModel:
    opened.append(path.name)
    return ScriptedModel(path, runtime)


def open_nothing(path: Path, runtime: RuntimeSettings) -> ScriptedModel:
    raise MissingDependencyError("llama-cpp-python is not installed: pip install ggufrope[llama]")


def take_up(folder: Path) -> RunStore:
    """Open the run in `folder` to carry it out, whatever has become of its model files."""
    with RunStore(folder) as store:
        plan = store.plan
        files = tuple(record.file for record in store.models())
        jobs = tuple(record.job for record in store.jobs())
    return RunStore.create(folder, plan, files, jobs)


def work(folder: Path, open_model: OpenModel = open_model, **options: Any) -> None:
    """Carry out the run in `folder` in this process."""
    inline = {name: options.pop(name) for name in ("on_job", "progress") if name in options}
    carry_out(folder, InlineTransport(open_model, **inline), **options)


def work_in_processes(folder: Path, opener: str = OPENER, **options: Any) -> None:
    """Carry out the run in `folder` in worker processes."""
    carry_out(folder, ProcessTransport(opener), **options)


def carry_out(folder: Path, transport: Transport, **options: Any) -> None:
    with take_up(folder) as store:
        drive(store, transport, **options)
