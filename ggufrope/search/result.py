"""The result of a search, as a report shows it, and the command to go on with.

The command is the one for YaRN unless the searched scheme beats it on the holdout: a scheme that
was lucky on the search's own samples is not handed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.patching.command import patch_command
from ggufrope.patching.request import ScalingRequest
from ggufrope.patching.rotation import Rotation
from ggufrope.rope.architectures import architecture
from ggufrope.rope.overrides import command_flags, context_overrides
from ggufrope.rope.scaling import RopeScaling, Yarn
from ggufrope.rope.trained import declared_scaling, trained_context, trained_state
from ggufrope.search.engine import WINNER, YARN, Outcome
from ggufrope.search.holdout import Comparison, SchemeScore
from ggufrope.search.record import Candidate, encode_scheme
from ggufrope.search.spaces import baselines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ggufrope.patching.inspection import StoredModel
    from ggufrope.patching.request import ScalingName

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What a scheme divides each pair's own frequency by, `[n_rot/2]`, and its attention factor."""

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
    """The winner, how good it is, and how to go on.

    `search` is all that its losses depend on: the plan, the file, the runtime's settings.
    `won` is whether the winner beats YaRN on the holdout beyond chance; `conclusion` says so in a
    sentence. `patch_command` writes the scheme to use into a copy of the file, the winner where it
    won and YaRN otherwise; `flags` are run-time flags that say the same, where any do.
    `searched_command` writes the winner, whether it won or not. `overhead_share` is the time spent
    setting candidates up over that spent evaluating them; `updates_in_place` whether that needed no
    loading. `budget_exhausted` is whether the budget ended the screening.
    """

    schema: int
    file: str
    search: dict[str, object]
    rotation: Rotation
    winner: dict[str, object]
    curves: tuple[Curve, ...]
    short: Curve | None
    holdout: tuple[Comparison, ...]
    short_context: tuple[Comparison, ...]
    short_context_passed: bool
    won: bool
    conclusion: str
    patch_command: str
    searched_command: str
    flags: tuple[str, ...]
    history: tuple[Step, ...]
    seconds: float
    overhead_share: float
    updates_in_place: bool
    budget_exhausted: bool


def result_of(
    model: StoredModel,
    search: dict[str, object],
    rotation: Rotation,
    outcome: Outcome,
    candidates: Sequence[Candidate],
    *,
    factors_path: Path,
    updates_in_place: bool,
) -> SearchResult:
    """Put together what the outcome and the candidates on the way say."""
    known = {name: scheme for name, scheme in baselines(rotation).items() if name != "unscaled"}
    evaluating = sum(each.evaluation.seconds for each in candidates)
    setting_up = sum(each.evaluation.overhead_seconds for each in candidates)
    won = outcome.holdout[0].difference.verdict == "better"
    searched = searched_request(model, rotation, outcome, factors_path)
    output = model.path.with_name(f"{model.path.stem}-{rotation.target_context}.gguf")
    return SearchResult(
        schema=SCHEMA,
        file=model.path.name,
        search=search,
        rotation=rotation,
        winner=encode_scheme(outcome.winner),
        curves=tuple(
            _curve(name, scheme, rotation)
            for name, scheme in {WINNER: outcome.winner, **known}.items()
        ),
        short=None if outcome.short is None else _curve("short factors", outcome.short, rotation),
        holdout=outcome.holdout,
        short_context=outcome.short_context,
        short_context_passed=all(
            each.difference.verdict != "worse" for each in outcome.short_context
        ),
        won=won,
        conclusion=conclusion(outcome),
        patch_command=patch_command(
            searched if won else yarn_request(model, rotation), model.path, output
        ),
        searched_command=patch_command(searched, model.path, output),
        flags=_flags(model, outcome.winner if won else known[YARN]),
        history=tuple(_step(candidate) for candidate in candidates),
        seconds=evaluating + setting_up,
        overhead_share=setting_up / evaluating if evaluating else 0.0,
        updates_in_place=updates_in_place,
        budget_exhausted=outcome.budget_exhausted,
    )


def conclusion(outcome: Outcome) -> str:
    """Return whether the winner beats YaRN on samples the search never saw, in a sentence."""
    comparison = outcome.holdout[0]
    scores = {score.name: score for score in comparison.scores}
    difference = comparison.difference
    verdict = {
        "better": "The search wins",
        "worse": "The search does not win: YaRN is better",
        "undecided": "The search does not win: no difference from YaRN beyond chance",
    }[difference.verdict]
    return (
        f"{verdict}. On {difference.samples} samples it never saw: "
        f"{_score(scores[WINNER])}, YaRN {_score(scores[YARN])}; loss difference "
        f"{difference.value:+.3f} nat per token (95 %: {difference.low:+.3f} to "
        f"{difference.high:+.3f})."
    )


def yarn_request(model: StoredModel, rotation: Rotation) -> ScalingRequest:
    """Return the request that writes YaRN to the target of the search."""
    return ScalingRequest(
        scaling="yarn",
        target_context=rotation.target_context,
        original_context=_original_context(model, rotation),
    )


def searched_request(
    model: StoredModel, rotation: Rotation, outcome: Outcome, factors_path: Path
) -> ScalingRequest:
    """Return the request that writes the winner, with its factors from `factors_path`.

    Where the architecture loads no factors it is YaRN with the winner's attention factor. Factors
    say the whole rotation, so they replace the scaling that the file has.
    """
    loads = architecture(model.metadata.architecture).loads_factors
    replaces = loads and declared_scaling(trained_state(model.metadata)) is not None
    original = _original_context(model, rotation)
    scheme: ScalingName = "yarn"
    if loads:
        scheme = "factors" if outcome.short is None else "longrope"
    return ScalingRequest(
        scaling=scheme,
        long_factors=str(factors_path) if loads else None,
        target_context=rotation.target_context,
        original_context=rotation.original_context if replaces else original,
        attn_factor=rotation.magnitude(outcome.winner),
        replace_scaling=replaces,
    )


def _original_context(model: StoredModel, rotation: Rotation) -> int | None:
    """The original context, None where it follows from the file."""
    trained, state = trained_context(model.metadata), trained_state(model.metadata)
    follows = {state.original_context}
    if trained is not None:
        follows |= {trained.tokens, trained.original}
    return None if rotation.original_context in follows else rotation.original_context


def _flags(model: StoredModel, scheme: RopeScaling) -> tuple[str, ...]:
    if not isinstance(scheme, Yarn):
        return ()
    return command_flags(context_overrides(scheme, model.metadata)[0])


def _score(score: SchemeScore) -> str:
    if score.recall is not None and score.recall.value is not None:
        recall = score.recall
        low, high = recall.low or 0.0, recall.high or 0.0
        return f"recall {recall.value:.1%} ({low:.1%} to {high:.1%})"
    return f"loss {score.loss.value:.3f}"


def _curve(name: str, scheme: RopeScaling, rotation: Rotation) -> Curve:
    return Curve(
        name=name,
        factors=rotation.relative_factors(scheme),
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
