"""A model under test whose file says, in words, how it behaves.

A line of the file is an instruction: "forgets 100" (looks back 100 tokens at most; "forgets 100
none" only under the scaling "none"), "refuses q4_0", "fails 256" (an error beyond 256 tokens),
"dies SIGKILL 256", "hogs 256" (runs out of memory beyond), "sleeps 0.2". Workers import this
module by name.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from ggufrope.errors import DecodeError, MissingDependencyError, UnsupportedCacheError
from ggufrope.runtime.fake import FakeContext, FakeModel

if TYPE_CHECKING:
    from pathlib import Path


class ScriptedContext(FakeContext):
    def __init__(self, model, n_ctx, script):
        super().__init__(model, n_ctx=n_ctx)
        self._script = script

    def extend(self, tokens, *, progress=None):
        self._act(self.position + len(tokens))
        super().extend(tokens, progress=progress)

    def _act(self, reached):
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
        time.sleep(float(self._script.get("sleeps", 0)))


class ScriptedSubject:
    details = {"llama.cpp": "scripted"}  # noqa: RUF012

    def __init__(self, path, runtime):
        self.model = FakeModel()
        lines = path.read_text().splitlines()
        self._script = dict(line.split(" ", 1) for line in lines if line)

    def contexts(self, trial, kv, *, largest):
        horizon, _, scaling = self._script.get("forgets", "").partition(" ")
        forgetful = horizon and scaling in ("", trial.scaling)

        def open_context(n_ctx):
            if self._script.get("refuses") in (kv.k, kv.v):
                raise UnsupportedCacheError(f"this build cannot run {kv}")
            # Tokens are shared, and how far back one looks is not.
            model = FakeModel(horizon=int(horizon) if forgetful else None)
            model._tokens, model._pieces = self.model._tokens, self.model._pieces
            return ScriptedContext(model, n_ctx, self._script)

        return open_context

    def close(self):
        pass


opened: list[str] = []
"""Names of the files opened in this process."""


def open_subject(path: Path, runtime):
    opened.append(path.name)
    return ScriptedSubject(path, runtime)


def open_nothing(path: Path, runtime):
    raise MissingDependencyError("llama-cpp-python is not installed: pip install ggufrope[llama]")
