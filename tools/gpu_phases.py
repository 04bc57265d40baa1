"""Phases of a check: timed, logged, each with a time limit, and independent of one another."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_CARD = "name,compute_cap,memory.total,driver_version"
_LOAD = "index,utilization.gpu,memory.used"
_LOG_TAIL = 400


class PhaseError(Exception):
    """A phase failed; the message is the reason."""


@dataclass(slots=True, kw_only=True)
class Phase:
    """One phase and its result; `status` is "ok", "failed" or "skipped".

    `gpu_percent` is the mean utilization of the busiest GPU, `gpu_peak_mib` the most memory in use
    on any. Both are None where nothing was measured.
    """

    name: str
    status: str = "ok"
    reason: str = ""
    seconds: float = 0.0
    gpu_percent: float | None = None
    gpu_peak_mib: float | None = None
    details: dict[str, object] = field(default_factory=dict)


class Phases:
    """Carries out phases one after the other, within `minutes` for all of them together.

    Every limit is multiplied by `patience`.
    """

    def __init__(self, folder: Path, *, minutes: float, patience: float = 1.0) -> None:
        self.done: list[Phase] = []
        self._folder = folder
        self._patience = patience
        self._deadline = time.monotonic() + 60 * minutes * patience
        self._phase_deadline = self._deadline

    @contextmanager
    def phase(self, name: str, *, seconds: float) -> Iterator[Phase]:
        """Record the block as a phase; an error in it is its result and is not raised.

        Its commands are stopped after `seconds` together.
        """
        phase = Phase(name=name)
        self.done.append(phase)
        print(f"{name} …", flush=True)
        start = time.monotonic()
        self._phase_deadline = min(self._deadline, start + seconds * self._patience)
        with _GpuWatch() as watch:
            try:
                yield phase
            except (PhaseError, OSError, ValueError, KeyError) as error:
                phase.status, phase.reason = "failed", str(error)
        phase.seconds = round(time.monotonic() - start, 1)
        phase.gpu_percent, phase.gpu_peak_mib = watch.seen
        print(f"{name}: {phase.status} after {phase.seconds} s {phase.reason}", flush=True)

    def skip(self, name: str, reason: str) -> None:
        """Record a phase that is not carried out."""
        self.done.append(Phase(name=name, status="skipped", reason=reason))
        print(f"{name}: skipped, {reason}", flush=True)

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        allowed: Sequence[int] = (0,),
        grace: float = 0.0,
    ) -> str:
        """Run a command and return its standard output; all output is in the log of the phase.

        Raises PhaseError where the exit status is not `allowed`, or no time is left; `grace` is
        seconds beyond the limit of the phase. A command that is stopped takes its own child
        processes with it.
        """
        left = self._phase_deadline + grace - time.monotonic()
        if left <= 0:
            raise PhaseError("no time is left")
        log = self._folder / f"{self.done[-1].name.replace(' ', '-')}.log"
        with log.open("a", encoding="utf-8") as stream:
            print("$", *command, file=stream, flush=True)
            process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                start_new_session=True,
            )
            try:
                output, _ = process.communicate(timeout=left)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                raise PhaseError(f"stopped after the {left:.0f} s that were left") from None
            stream.write(output)
        if process.returncode not in allowed:
            tail = log.read_text(encoding="utf-8", errors="replace").strip()[-_LOG_TAIL:]
            raise PhaseError(f"exit status {process.returncode}: {tail}")
        return output


def cards() -> list[str]:
    """Return a line on each NVIDIA GPU of this machine: its name, compute capability, memory and
    driver. Raises PhaseError where there is none."""
    try:
        done = subprocess.run(
            _nvidia_smi(_CARD), check=True, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise PhaseError(f"no NVIDIA GPU: nvidia-smi does not answer ({error})") from error
    return done.stdout.splitlines()


def parse_load(text: str) -> tuple[float | None, float | None]:
    """Return the mean utilization of the busiest GPU in percent, and the peak memory in MiB."""
    percents: dict[str, list[float]] = {}
    most: float | None = None
    for line in text.splitlines():
        card, *numbers = line.split(",")
        try:
            percent, memory = (float(number.split()[0]) for number in numbers)
        except (ValueError, IndexError):  # "[N/A]", or a line cut short
            continue
        percents.setdefault(card, []).append(percent)
        most = memory if most is None else max(most, memory)
    means = [sum(one) / len(one) for one in percents.values()]
    return (round(max(means), 1) if means else None), most


class _GpuWatch:
    """Samples the load of the GPUs once per second, where nvidia-smi is installed."""

    def __init__(self) -> None:
        self.seen: tuple[float | None, float | None] = (None, None)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> _GpuWatch:
        with suppress(OSError):
            self._process = subprocess.Popen(
                [*_nvidia_smi(_LOAD), "--loop=1"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            output = self._process.communicate()[0]
            self.seen = parse_load(output)


def _nvidia_smi(query: str) -> list[str]:
    return ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
