"""A model under test whose file says, in words, how it behaves.

A line of the file is an instruction: "forgets 256" (finds nothing beyond 256 tokens), "refuses
q4_0", "fails 256" (an error beyond 256 tokens), "dies SIGKILL 256", "sleeps 0.2". Workers import
this module by name.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from ggufrope.errors import CacheTypeError, DecodeError
from ggufrope.evals.protocol import AnswerScore

if TYPE_CHECKING:
    from pathlib import Path


class ScriptedModel:
    """One token a byte."""

    n_vocab = 256

    def tokenize(self, text, *, beginning=False):
        return list(text.encode())

    def detokenize(self, tokens):
        return bytes(tokens).decode()


class ScriptedContext:
    """Knows an answer exactly when the question's last words, with it, stand in the trunk."""

    cache_bytes = None

    def __init__(self, n_ctx, script):
        self.n_ctx = n_ctx
        self._script = script
        self._trunk = b""

    @property
    def position(self):
        return len(self._trunk)

    def extend(self, tokens, *, progress=None):
        limit = self._script.get("fails")
        if limit and len(self._trunk) + len(tokens) > int(limit):
            raise DecodeError("the batch of 512 tokens failed")
        if "dies" in self._script:
            name, after = self._script["dies"].split()
            if len(self._trunk) + len(tokens) > int(after):
                sys.stderr.write("GGML_ASSERT(n_tokens > 0) failed\n")
                sys.stderr.flush()
                os.kill(os.getpid(), getattr(signal, name))
                time.sleep(10)
        time.sleep(float(self._script.get("sleeps", 0)))
        self._trunk += bytes(tokens)
        if progress:
            progress(len(tokens))

    def rewind(self, position):
        self._trunk = self._trunk[:position]

    def score(self, branches):
        return [tuple(self._score(b.prompt, answer) for answer in b.answers) for b in branches]

    def _score(self, prompt, answer):
        wanted = bytes(prompt)[-20:].split(b" ", 1)[1] + bytes(answer)
        known = wanted.strip() in self._trunk
        if len(self._trunk) > int(self._script.get("forgets", 1 << 30)):
            known = False
        return AnswerScore(log_probabilities=(-0.1 if known else -9.0,) * len(answer), greedy=known)

    def close(self):
        pass


class ScriptedSubject:
    def __init__(self, path, runtime):
        self.model = ScriptedModel()
        self.details = {"llama.cpp": "scripted"}
        lines = path.read_text().splitlines()
        self._script = dict(line.split(" ", 1) for line in lines if line)

    def contexts(self, trial, kv, *, largest):
        def open_context(n_ctx):
            if self._script.get("refuses") in (kv.k, kv.v):
                raise CacheTypeError(f"this build cannot run {kv}")
            return ScriptedContext(n_ctx, self._script)

        return open_context

    def close(self):
        pass


opened: list[str] = []
"""Names of the files opened in this process."""


def open_subject(path: Path, runtime):
    opened.append(path.name)
    return ScriptedSubject(path, runtime)


def open_nothing(path: Path, runtime):
    from ggufrope.errors import MissingPartError

    raise MissingPartError("llama-cpp-python is not installed: pip install ggufrope[llama]")
