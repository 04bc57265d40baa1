"""A run carried out by worker processes, so that one that dies takes only its job with it.

llama.cpp ends the process on an assertion, the kernel when memory runs out. The parent sees how
each worker ended, records the job it held as failed with the signal and the last thing it said,
and starts another in its place.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import MissingPartError, RuntimeFailure, StorageError
from . import records
from .jobs import Selection
from .store import RunStore
from .work import OnCell, new_worker_name
from .worker import CANNOT_GO_ON

if TYPE_CHECKING:
    from pathlib import Path

POLL_SECONDS = 0.1
_LAST_WORDS_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place for one worker at a time; `environment` is set for it, a GPU's number say."""

    environment: Mapping[str, str]

    @classmethod
    def on_gpu(cls, device: str) -> Slot:
        """A slot that sees only the CUDA device of that number or UUID."""
        return cls(environment={"CUDA_VISIBLE_DEVICES": device})


def run_in_processes(
    folder: Path,
    opener: str,
    *,
    slots: Sequence[Slot] = (Slot(environment={}),),
    selection: Selection | None = None,
    on_cell: OnCell | None = None,
) -> None:
    """Do what is left of the run in `folder`, with one worker a slot.

    `opener` is "package.module:function", an OpenSubject that workers can import. Raises
    MissingPartError or RuntimeFailure where no worker can work at all.
    """
    selection = selection or Selection()
    with RunStore(folder) as store, ExitStack() as cleanup:
        seen = store.last_cell
        workers = [_Worker(folder, opener, slot, selection) for slot in slots]
        for worker in workers:
            cleanup.callback(worker.stop)
        while workers:
            time.sleep(POLL_SECONDS)
            for worker in [w for w in workers if w.ended]:
                workers.remove(worker)
                if _bury(store, worker):
                    successor = _Worker(folder, opener, worker.slot, selection)
                    cleanup.callback(successor.stop)
                    workers.append(successor)
            if on_cell is not None:
                for mark, result in store.results_after(seen):
                    on_cell(result)
                    seen = mark


def _bury(store: RunStore, worker: _Worker) -> bool:
    """Record how a worker ended; whether another should take its place."""
    if worker.status == 0:
        return False
    if worker.status == CANNOT_GO_ON:
        kind, _, message = worker.last_words.partition(": ")
        failure = {"MissingPartError": MissingPartError, "StorageError": StorageError}
        raise failure.get(kind, RuntimeFailure)(message or "the worker could not go on")
    job = store.held_by(worker.name)
    if job is None:
        raise RuntimeFailure(f"a worker ended before it took a job: {worker.fate}")
    store.fail(job, f"its process was ended: {worker.fate}")
    return True


class _Worker:
    """One worker process and its log."""

    def __init__(self, folder: Path, opener: str, slot: Slot, selection: Selection) -> None:
        self.slot = slot
        self.name = new_worker_name()
        self._log = folder / "logs" / f"{self.name}.log"
        arguments = {
            "folder": str(folder),
            "worker": self.name,
            "opener": opener,
            "selection": records.encode(selection),
        }
        self._log.parent.mkdir(exist_ok=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker", json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | slot.environment,
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def status(self) -> int | None:
        return self._process.returncode

    @property
    def last_words(self) -> str:
        """The last line it wrote, "" where it wrote none."""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _LAST_WORDS_BYTES))
            lines = log.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    @property
    def fate(self) -> str:
        """How it ended, in words: the signal or exit status, and its last line."""
        status = self._process.returncode
        fate = f"exit status {status}"
        if status < 0:
            fate = signal.Signals(-status).name
            if -status == getattr(signal, "SIGKILL", None):
                fate += " (as the kernel does when memory runs out)"
        return f"{fate}; its last words: {self.last_words}" if self.last_words else fate

    def stop(self) -> None:
        """Close its lifeline and wait; it ends by itself, or is ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
