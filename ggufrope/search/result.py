"""The result of a search, as a report shows it, and the command to go on with.

The command is the one for the scheme to beat unless the searched scheme beats it on the holdout: a
scheme that was lucky on the search's own samples is not handed over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.patching.command import patch_command, serve_command
from ggufrope.patching.request import ScalingRequest
from ggufrope.patching.rotation import Rotation
from ggufrope.rope.architectures import architecture
from ggufrope.rope.scaling import Linear, Unscaled, Yarn
from ggufrope.rope.trained import declared_scaling, trained_context, trained_state
from ggufrope.search.engine import SHORT, WINNER, Outcome
from ggufrope.search.holdout import Comparison, SchemeScore
from ggufrope.search.record import Candidate
from ggufrope.search.schemes import Scheme, encode_scheme, exact_parameters, parameters
from ggufrope.search.spaces import baselines, to_beat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ggufrope.patching.inspection import StoredModel
    from ggufrope.search.race import Standing

SCHEMA = 1
SHOWN_NAMES = {"yarn": "YaRN", "unscaled": "the model as it stands"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What a scheme divides each pair's own frequency by, `[n_rot/2]`, and its attention factor."""

    name: str
    factors: tuple[float, ...]
    magnitude: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One evaluation of the history, on one haystack."""

    number: int
    stage: str
    fitness: str
    haystack: int
    loss: float
    stopped: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """One scheme of the finals: its mean loss in nat per token over so many haystacks of the
    search, and the loss at the target, and in the original context where candidates are judged by
    both; None where no haystack was judged to the end.

    `difference` is its loss minus that of the scheme to beat on the haystacks of both. `on_front`
    is whether no finalist on as many haystacks is better at one length and no worse at the other.
    """

    name: str
    scheme: dict[str, object]
    haystacks: int
    loss: float
    difference: float
    target_loss: float | None
    original_loss: float | None
    on_front: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The winner, how good it is, and how to go on.

    `search` is all that its losses depend on: the plan, the file, the runtime's settings.
    `won` is whether the winner beats `to_beat` on the holdout beyond chance; `conclusion` says so
    in a sentence. `patch_command` writes the scheme to use into a copy of the file, the winner
    where it won and `to_beat` otherwise; `serve_command` runs the file as it is with run-time flags
    that say the same in every context. One of them may be empty: only the other can say it, or
    there is nothing to change. `searched_patch_command` and `searched_serve_command` are those of
    the winner, whether it won or not. `overhead_share` is the time spent setting candidates up over
    that spent evaluating them; `updates_in_place` whether that needed no loading.
    `budget_exhausted` is whether the budget ended a stage.
    """

    schema: int
    file: str
    search: dict[str, object]
    rotation: Rotation
    winner: dict[str, object]
    to_beat: str
    curves: tuple[Curve, ...]
    short: Curve | None
    finals: tuple[Finalist, ...]
    holdout: tuple[Comparison, ...]
    short_context: tuple[Comparison, ...]
    short_context_passed: bool
    won: bool
    conclusion: str
    patch_command: str
    serve_command: str
    searched_patch_command: str
    searched_serve_command: str
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
    evaluating = sum(each.evaluation.seconds for each in candidates)
    setting_up = sum(each.evaluation.overhead_seconds for each in candidates)
    known = {name: scheme for name, scheme in baselines(rotation).items() if name != "unscaled"}
    searched = _commands(
        searched_request(model, rotation, outcome, factors_path), outcome.winner, model, rotation
    )
    used = searched
    if not outcome.won:
        used = _commands_to_beat(outcome.to_beat, model, rotation)
    return SearchResult(
        schema=SCHEMA,
        file=model.path.name,
        search=search,
        rotation=rotation,
        winner=encode_scheme(outcome.winner),
        to_beat=to_beat(rotation),
        curves=tuple(
            _curve(name, scheme, rotation)
            for name, scheme in {WINNER: outcome.winner, **known}.items()
        ),
        short=None
        if outcome.short is None
        else _curve(SHORT, Scheme(scaling=outcome.short), rotation),
        finals=_finals(outcome, rotation),
        holdout=outcome.holdout,
        short_context=outcome.short_context,
        short_context_passed=all(each.verdict != "worse" for each in outcome.short_context),
        won=outcome.won,
        conclusion=conclusion(outcome, rotation),
        patch_command=used[0],
        serve_command=used[1],
        searched_patch_command=searched[0],
        searched_serve_command=searched[1],
        history=tuple(_step(candidate) for candidate in candidates),
        seconds=evaluating + setting_up,
        overhead_share=setting_up / evaluating if evaluating else 0.0,
        updates_in_place=updates_in_place,
        budget_exhausted=outcome.budget_exhausted,
    )


def conclusion(outcome: Outcome, rotation: Rotation) -> str:
    """Return whether the winner beats the scheme to beat on samples the search never saw, in a
    sentence."""
    name = to_beat(rotation)
    shown = SHOWN_NAMES[name]
    if not outcome.holdout:
        best, anchor = outcome.finals[0], _anchor(outcome)
        ours, theirs = best.against(anchor)
        return (
            f"The search found nothing better than {shown}. In the finals, on "
            f"{_haystacks(min(best.haystacks, anchor.haystacks))}, the best searched scheme lost "
            f"{ours:.3f} nat per token, {shown} {theirs:.3f}."
        )
    comparison = outcome.holdout[0]
    scores = {score.name: score for score in comparison.scores if score.asked != "whole"}
    difference, answers = comparison.difference, comparison.answers
    verdict = {
        "better": "The search wins",
        "worse": f"The search does not win: {shown} is better",
        "undecided": f"The search does not win: no difference from {shown} beyond chance",
    }[comparison.verdict]
    if comparison.verdict == "better" and not outcome.won:
        verdict = f"The search does not win: it is better by needles and worse than {shown} by text"
    changed = ""
    if answers is not None:
        changed = (
            f" It answers {answers.gained} needles that {shown} misses, and misses "
            f"{answers.lost} that {shown} answers (exact test: p = {answers.p_value:.2g})."
        )
    return (
        f"{verdict}. On {_haystacks(difference.samples)} it never saw: "
        f"{_score(scores[WINNER])}, {shown} {_score(scores[name])}; loss difference "
        f"{difference.value:+.3f} nat per token (95 %: {difference.low:+.3f} to "
        f"{difference.high:+.3f}).{changed}"
    )


def searched_request(
    model: StoredModel, rotation: Rotation, outcome: Outcome, factors_path: Path
) -> ScalingRequest | None:
    """Return the request that writes the winner; None where no file can say it.

    Keys where they say it, else factors from `factors_path`. Factors say the whole rotation, so
    they replace the scaling that the file has. Where the architecture loads none it is YaRN with
    the winner's attention factor, which needs run-time flags for its betas.
    """
    arch = architecture(model.metadata.architecture)
    scaled = declared_scaling(trained_state(model.metadata)) is not None
    original = _original_context(model, rotation)
    winner = outcome.winner
    if outcome.short is None and not (scaled and arch.loads_factors):
        request = _in_keys(winner, rotation, original, betas=not arch.loads_factors)
        if request is not None or not arch.loads_factors:
            return request
    return ScalingRequest(
        scaling="factors" if outcome.short is None else "longrope",
        long_factors=str(factors_path),
        factor=None if rotation.factor > 1 else 1.0,
        target_context=rotation.target_context if rotation.factor > 1 else None,
        original_context=rotation.original_context if scaled else original,
        attn_factor=winner.magnitude(rotation),
        replace_scaling=scaled,
    )


def _in_keys(
    scheme: Scheme, rotation: Rotation, original: int | None, *, betas: bool
) -> ScalingRequest | None:
    """The request for a scheme that keys say, perhaps but for YaRN's `betas`."""
    scaling = scheme.scaling
    target = rotation.target_context if rotation.factor > 1 else None
    match scaling:
        case Unscaled():
            return ScalingRequest(
                scaling="none",
                target_context=target,
                original_context=original,
                freq_base=scheme.freq_base,
            )
        case Linear(factor=factor) if factor >= rotation.factor:
            return ScalingRequest(
                scaling="linear",
                factor=factor,
                original_context=original,
                freq_base=scheme.freq_base,
            )
        case Yarn(ext_factor=1.0, factor=factor) if betas or (
            scaling.beta_fast,
            scaling.beta_slow,
        ) == (32, 1):
            return ScalingRequest(
                scaling="yarn",
                factor=None if factor == rotation.factor else factor,
                target_context=rotation.target_context,
                original_context=original,
                beta_fast=scaling.beta_fast if betas else None,
                beta_slow=scaling.beta_slow if betas else None,
                attn_factor=scaling.attention_factor,
            )
    return None


def _commands(
    request: ScalingRequest | None, scheme: Scheme, model: StoredModel, rotation: Rotation
) -> tuple[str, str]:
    """The command that writes a scheme, and the one that runs the file as it is with it."""
    written = served = ""
    if request is not None:
        output = model.path.with_name(f"{model.path.stem}-{rotation.target_context}.gguf")
        written = patch_command(request, model.path, output)
    found = exact_parameters(scheme, rotation, model.metadata)
    if not architecture(model.metadata.architecture).loads_factors:
        found = parameters(scheme, model.metadata)  # what the search measured
    if found is not None:
        flags = found.flags(model.metadata)
        served = serve_command(model.path, rotation.target_context, flags=flags)
    return written, served


def _commands_to_beat(scheme: Scheme, model: StoredModel, rotation: Rotation) -> tuple[str, str]:
    """The same for YaRN to the target of the search; none where the model stays as it stands."""
    if rotation.factor <= 1:
        return "", ""
    request = ScalingRequest(
        scaling="yarn",
        target_context=rotation.target_context,
        original_context=_original_context(model, rotation),
    )
    return _commands(request, scheme, model, rotation)


def _original_context(model: StoredModel, rotation: Rotation) -> int | None:
    """The original context, None where it follows from the file."""
    trained, state = trained_context(model.metadata), trained_state(model.metadata)
    follows = {state.original_context}
    if trained is not None:
        follows |= {trained.tokens, trained.original}
    return None if rotation.original_context in follows else rotation.original_context


def _finals(outcome: Outcome, rotation: Rotation) -> tuple[Finalist, ...]:
    anchor = _anchor(outcome)
    target, original = rotation.target_context, rotation.original_context
    lengths = {cell.context_tokens for cell in anchor.evaluations[0].cells}
    points = [
        (_loss_at(each, target), _loss_at(each, original) if len(lengths) > 1 else None)
        for each in outcome.finals
    ]
    whole = [_whole(each) for each in outcome.finals]
    found = []
    for number, standing in enumerate(outcome.finals):
        ours, theirs = standing.against(anchor)
        names = {0: WINNER, outcome.finals.index(anchor): to_beat(rotation)}
        rivals = [point for point, n in zip(points, whole, strict=True) if n == whole[number]]
        found.append(
            Finalist(
                name=names.get(number, "finalist"),
                scheme=encode_scheme(standing.scheme),
                haystacks=standing.haystacks,
                loss=standing.loss,
                difference=ours - theirs,
                target_loss=points[number][0],
                original_loss=points[number][1],
                on_front=whole[number] > 0
                and not any(_dominates(other, points[number]) for other in rivals),
            )
        )
    return tuple(found)


def _dominates(one: tuple[float | None, ...], other: tuple[float | None, ...]) -> bool:
    pairs = [(a or 0.0, b or 0.0) for a, b in zip(one, other, strict=True)]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _whole(standing: Standing) -> int:
    """How many haystacks were judged to the end."""
    return standing.haystacks - standing.stopped


def _loss_at(standing: Standing, context_tokens: int) -> float | None:
    """The mean loss at one length, None where no haystack was judged to the end."""
    losses = [each.loss_at(context_tokens) for each in standing.evaluations[: _whole(standing)]]
    return math.fsum(losses) / len(losses) if losses else None


def _anchor(outcome: Outcome) -> Standing:
    return next(each for each in outcome.finals if each.scheme == outcome.to_beat)


def _haystacks(count: int) -> str:
    return f"{count} haystack{'s' * (count != 1)}"


def _score(score: SchemeScore) -> str:
    if score.recall is not None and score.recall.value is not None:
        recall = score.recall
        low, high = recall.low or 0.0, recall.high or 0.0
        return f"recall {recall.value:.1%} ({low:.1%} to {high:.1%})"
    return f"loss {score.loss.value:.3f}"


def _curve(name: str, scheme: Scheme, rotation: Rotation) -> Curve:
    return Curve(name=name, factors=scheme.factors(rotation), magnitude=scheme.magnitude(rotation))


def _step(candidate: Candidate) -> Step:
    return Step(
        number=candidate.number,
        stage=candidate.stage,
        fitness=candidate.fitness,
        haystack=candidate.haystack,
        loss=candidate.loss,
        stopped=candidate.evaluation.stopped,
        seconds=candidate.seconds,
    )
