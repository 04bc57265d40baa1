"""What a search came to, as a report shows it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.rope.architectures import architecture
from ggufrope.rope.overrides import command_flags, context_overrides
from ggufrope.rope.scaling import RopeScaling, Yarn
from ggufrope.search.engine import WINNER, YARN, Found
from ggufrope.search.holdout import Comparison, Standing
from ggufrope.search.record import Candidate, encode_scheme
from ggufrope.search.spaces import Rotation, baselines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ggufrope.patching.inspection import StoredModel

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What a scheme divides each pair's own frequency by, `[n_rot/2]`, and its magnitude."""

    name: str
    factors: tuple[float, ...]
    magnitude: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One candidate of the history."""

    number: int
    stage: str
    fitness: str
    loss: float
    stopped: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The winner, how it stands, and how to use it.

    `search` is all that its losses depend on: the plan, the file, the runtime's settings.
    `won` is whether it beats YaRN on the holdout beyond chance; `conclusion` says so in a
    sentence. `patch_command` writes it into a copy of the file; `flags` are run-time flags that
    say the same, where any do. `overhead_share` is the time spent setting candidates up over that
    spent evaluating them; `live` whether that needed no loading.
    """

    schema: int
    file: str
    search: dict[str, object]
    rotation: Rotation
    winner: dict[str, object]
    curves: tuple[Curve, ...]
    short: Curve | None
    holdout: tuple[Comparison, ...]
    gate: tuple[Comparison, ...]
    gate_passed: bool
    won: bool
    conclusion: str
    patch_command: str
    flags: tuple[str, ...]
    history: tuple[Step, ...]
    seconds: float
    overhead_share: float
    live: bool
    spent: bool


def result_of(
    model: StoredModel,
    search: dict[str, object],
    rotation: Rotation,
    found: Found,
    candidates: Sequence[Candidate],
    *,
    factors_path: Path,
    live: bool,
) -> SearchResult:
    """Put together what `found` and the candidates on the way say."""
    known = {name: scheme for name, scheme in baselines(rotation).items() if name != "unscaled"}
    evaluating = sum(each.evaluation.seconds for each in candidates)
    setting_up = sum(each.evaluation.overhead_seconds for each in candidates)
    return SearchResult(
        schema=SCHEMA,
        file=model.path.name,
        search=search,
        rotation=rotation,
        winner=encode_scheme(found.winner),
        curves=tuple(
            _curve(name, scheme, rotation)
            for name, scheme in {WINNER: found.winner, **known}.items()
        ),
        short=None if found.short is None else _curve("short factors", found.short, rotation),
        holdout=found.holdout,
        gate=found.gate,
        gate_passed=all(each.difference.verdict != "worse" for each in found.gate),
        won=found.holdout[0].difference.verdict == "better",
        conclusion=conclusion(found.holdout[0]),
        patch_command=patch_command(model, rotation, found, factors_path),
        flags=_flags(model, found.winner),
        history=tuple(_step(candidate) for candidate in candidates),
        seconds=evaluating + setting_up,
        overhead_share=setting_up / evaluating if evaluating else 0.0,
        live=live,
        spent=found.spent,
    )


def conclusion(comparison: Comparison) -> str:
    """Whether the winner beats YaRN on samples the search never saw, in a sentence."""
    standings = {standing.name: standing for standing in comparison.standings}
    difference = comparison.difference
    said = {
        "better": "The search wins",
        "worse": "The search does not win: YaRN is better",
        "undecided": "The search does not win: no difference from YaRN beyond chance",
    }[difference.verdict]
    return (
        f"{said}. On {difference.samples} samples it never saw: "
        f"{_standing(standings[WINNER])}, YaRN {_standing(standings[YARN])}; loss difference "
        f"{difference.value:+.3f} nat per token (95 %: {difference.low:+.3f} to "
        f"{difference.high:+.3f})."
    )


def patch_command(model: StoredModel, rotation: Rotation, found: Found, factors_path: Path) -> str:
    """The command that writes the winner into a copy of the file."""
    output = model.path.with_name(f"{model.path.stem}-{rotation.target_context}.gguf")
    words = ["ggufrope", "patch", str(model.path), "-o", str(output)]
    arch = architecture(model.metadata.architecture)
    if arch.loads_factors:
        scheme = "factors" if found.short is None else "longrope"
        words += ["--scaling", scheme, "--long-factors", str(factors_path)]
    else:
        words += ["--scaling", "yarn"]
    words += ["--target-ctx", str(rotation.target_context)]
    if rotation.original_context != (
        model.metadata.original_context or model.metadata.context_length
    ):
        words += ["--orig-ctx", str(rotation.original_context)]
    words += ["--attn-factor", f"{rotation.magnitude(found.winner):.9g}"]
    return shlex.join(words)


def _flags(model: StoredModel, winner: RopeScaling) -> tuple[str, ...]:
    if not isinstance(winner, Yarn):
        return ()
    return command_flags(context_overrides(winner, model.metadata)[0])


def _standing(standing: Standing) -> str:
    if standing.recall is not None and standing.recall.value is not None:
        recall = standing.recall
        low, high = recall.low or 0.0, recall.high or 0.0
        return f"recall {recall.value:.1%} ({low:.1%} to {high:.1%})"
    return f"loss {standing.loss.value:.3f}"


def _curve(name: str, scheme: RopeScaling, rotation: Rotation) -> Curve:
    return Curve(
        name=name,
        factors=tuple(rotation.relative_factors(scheme).tolist()),
        magnitude=rotation.magnitude(scheme),
    )


def _step(candidate: Candidate) -> Step:
    return Step(
        number=candidate.number,
        stage=candidate.stage,
        fitness=candidate.fitness,
        loss=candidate.loss,
        stopped=candidate.evaluation.stopped,
        seconds=candidate.seconds,
    )
