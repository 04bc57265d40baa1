"""Phases of a check: timed, logged, bounded by one deadline, and independent of one another."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_CARD = "name,compute_cap,memory.total,driver_version"
_LOAD = "index,utilization.gpu,memory.used"
_LAST_WORDS = 400


class PhaseError(Exception):
    """A phase could not be carried out; its message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """An NVIDIA GPU as nvidia-smi tells it; `architecture` is CMake's word, "90" for 9.0."""

    name: str
    architecture: str
    memory_mib: int
    driver: str


@dataclass(slots=True, kw_only=True)
class Phase:
    """`status` is "ok", "failed" or "skipped"; `gpu_percent` the mean utilization of the busiest
    card, `gpu_peak_mib` the most memory in use on any, both None where nothing was seen."""

    name: str
    status: str = "ok"
    reason: str = ""
    seconds: float = 0.0
    gpu_percent: float | None = None
    gpu_peak_mib: float | None = None
    details: dict[str, object] = field(default_factory=dict)


class Phases:
    """Carries phases out one after the other; `minutes` are for all of them together."""

    def __init__(self, folder: Path, *, minutes: float) -> None:
        self.done: list[Phase] = []
        self._folder = folder
        self._deadline = time.monotonic() + 60 * minutes

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """What happens inside is a phase: an error in it is recorded and goes no further."""
        phase = Phase(name=name)
        self.done.append(phase)
        print(f"{name} …", flush=True)
        start = time.monotonic()
        with _GpuWatch() as watch:
            try:
                yield phase
            except (PhaseError, OSError, ValueError, subprocess.SubprocessError) as error:
                phase.status, phase.reason = "failed", str(error)
        phase.seconds = round(time.monotonic() - start, 1)
        phase.gpu_percent, phase.gpu_peak_mib = watch.seen
        print(f"{name}: {phase.status} after {phase.seconds} s {phase.reason}", flush=True)

    def skip(self, name: str, reason: str) -> None:
        """Record a phase that has no place here."""
        self.done.append(Phase(name=name, status="skipped", reason=reason))
        print(f"{name}: skipped, {reason}", flush=True)

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        allowed: Sequence[int] = (0,),
    ) -> str:
        """Standard output of a command; all it says is kept in the log of its phase.

        Raises PhaseError where its exit status is not `allowed` or the time is used up.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise PhaseError("the time for the whole check is used up")
        log = self._folder / f"{self.done[-1].name.replace(' ', '-')}.log"
        with log.open("a", encoding="utf-8") as talk:
            print("$", *command, file=talk, flush=True)
            try:
                done = subprocess.run(
                    command,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=talk,
                    text=True,
                    timeout=left,
                )
            except subprocess.TimeoutExpired:
                raise PhaseError(f"cut off: {left:.0f} s were left for it") from None
            talk.write(done.stdout)
        if done.returncode not in allowed:
            words = log.read_text(encoding="utf-8", errors="replace").strip()[-_LAST_WORDS:]
            raise PhaseError(f"exit status {done.returncode}: {words}")
        return done.stdout


def cards() -> tuple[Card, ...]:
    """Every NVIDIA GPU of this machine; PhaseError where there is none."""
    try:
        told = subprocess.run(
            _nvidia_smi(_CARD), check=True, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise PhaseError(f"no NVIDIA GPU: nvidia-smi does not answer ({error})") from error
    return parse_cards(told.stdout)


def parse_cards(text: str) -> tuple[Card, ...]:
    """The lines of nvidia-smi as cards."""
    rows = [[word.strip() for word in line.split(",")] for line in text.splitlines() if line]
    return tuple(
        Card(
            name=name,
            architecture=capability.replace(".", ""),
            memory_mib=int(memory),
            driver=driver,
        )
        for name, capability, memory, driver in rows
    )


def parse_load(text: str) -> tuple[float | None, float | None]:
    """Mean utilization in percent of the busiest card, and peak memory in MiB of any."""
    percents: dict[str, list[float]] = {}
    most: float | None = None
    for line in text.splitlines():
        card, *numbers = line.split(",")
        try:
            percent, memory = map(float, numbers)
        except ValueError:  # "[N/A]", or a line cut short
            continue
        percents.setdefault(card, []).append(percent)
        most = memory if most is None else max(most, memory)
    means = [sum(one) / len(one) for one in percents.values()]
    return (round(max(means), 1) if means else None), most


class _GpuWatch:
    """Samples the load of the GPUs once a second, where nvidia-smi is there to ask."""

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
            self._process.terminate()
            said, _ = self._process.communicate()
            self.seen = parse_load(said)


def _nvidia_smi(query: str) -> list[str]:
    return ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
