"""Which methods to try for a longer context, and whether the result fits into memory.

Methods come in the order of what was measured without training (MEASURED): YaRN, then NTK-aware,
then linear interpolation, which hardly works unless the model was trained with it. Factors searched
for the one model may do better, or find nothing better. What a patch of this file would refuse is
never proposed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ggufrope._format import byte_size
from ggufrope.advice.memory import CACHE_CHOICES, MemoryNeed, Risk, cache_needs, longest_context
from ggufrope.errors import RequestError
from ggufrope.patching.command import (
    compare_command,
    name_beside,
    patch_command,
    probe_command,
    search_command,
    serve_command,
    validate_command,
)
from ggufrope.patching.compose import encode_request, refusal
from ggufrope.patching.request import ScalingRequest, raises_factor
from ggufrope.rope.architectures import Architecture, architecture
from ggufrope.rope.keys import ROPE_FACTORS_LONG
from ggufrope.rope.layers import layer_kinds
from ggufrope.rope.llamacpp import rotary_dimensions
from ggufrope.rope.purpose import Purpose, purpose
from ggufrope.rope.reach import USUAL_REACH, far_warning
from ggufrope.rope.scaling import RopeScaling
from ggufrope.rope.trained import (
    TrainedContext,
    declared_factor,
    declared_scaling,
    published_original,
    trained_context,
    trained_state,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ggufrope.container.types import Header
    from ggufrope.rope.metadata import RopeMetadata

BEYOND = 1.5
"""How many times the factor of the target YaRN is worth trying with as well: a model may recall
less far than it was trained for (benchmarks/results/yarn_factor_smollm2_16k.md)."""
NTK_REACH = 2.0
"""How many times longer the context may become, up to which a new base recalls every needle."""

MEASURED: dict[str, dict[int, float]] = {
    "as it is": {2: 0.864, 4: 0.045, 8: 0.0, 16: 0.0},
    "YaRN": {2: 1.0, 4: 1.0, 8: 1.0, 16: 0.955},
    "YaRN in long factors only": {2: 1.0, 4: 1.0, 8: 1.0, 16: 1.0},
    "NTK-aware": {2: 1.0, 4: 0.955, 8: 0.682, 16: 0.045},
    "linear": {2: 0.0, 4: 0.0, 8: 0.0, 16: 0.0},
}
"""Share of needles that nano recalls at a multiple of its trained context, by method, with a whole
prompt per needle (benchmarks/results/method_ranking.md). Within the trained context all but linear
recall every needle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to the target: the scaling, the reasons for its rank, and the risk for prompts within
    the original context.

    `commands` are the whole way in order: what writes it, probes it, measures it and serves it.
    """

    method: str
    scaling: RopeScaling | None
    reasons: tuple[str, ...]
    short_context_risk: Risk
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """`options` best first; `memory` one per cache type; `warnings` apply to every option.

    `trained` is the context that the model was trained for, and where that is from. `ratio` is the
    target over it, and `original_context` the same length, from which the scaling starts.
    `comparison` is the command that measures the schemes before anything is written, None where
    there is nothing to compare.
    """

    target_context: int
    original_context: int
    ratio: float
    trained: TrainedContext
    options: tuple[Option, ...]
    memory: tuple[MemoryNeed, ...]
    warnings: tuple[str, ...] = ()
    comparison: str | None = None


def advise(
    header: Header,
    metadata: RopeMetadata,
    *,
    target_context: int,
    memory_bytes: int | None = None,
    slow_pairs: Collection[tuple[str, str]] | None = None,
    file: str = "MODEL.gguf",
) -> Advice:
    """Rank the ways to run the model at `target_context` tokens.

    `memory_bytes` is what the device has. `slow_pairs` are the pairs of K and V cache types that
    the build of llama.cpp at hand runs slowly (`runtime.attention`), which are not proposed; None
    where that is not known. `file` is how commands name the model. Raises RequestError where
    nothing rotates or the lengths make no sense, FileError where the file would not load.
    """
    arch = architecture(metadata.architecture)
    trained = trained_context(metadata)
    if trained is None:
        raise RequestError(
            f"{metadata.key('context_length')} is missing: advice needs the trained context length"
        )
    if target_context < 1:
        raise RequestError(f"`target_context` {target_context}: expected 1 token or more")
    rotary_dimensions(metadata, arch)  # refuses widths that no model has
    kinds = set(layer_kinds(metadata, arch))
    if not kinds & {"global", "sliding-window"}:
        raise RequestError(
            f"no layer of this {arch.name} model rotates: it has no RoPE to scale, and its context "
            "is what it was trained for"
        )
    plan = _Plan(
        declared=metadata,
        metadata=trained_state(metadata),
        arch=arch,
        file=file,
        target=target_context,
        context=trained.tokens,
    )
    if plan.is_covered:
        candidates = [plan.nothing()]
    elif target_context <= trained.tokens:
        candidates = [plan.longer(trained)]
    elif "global" not in kinds:
        candidates = [plan.windows_only()]
    else:
        candidates = plan.scaled()
    refused = {each.method: why for each in candidates if (why := plan.refusal(each)) is not None}
    options = [plan.option(each) for each in candidates if each.method not in refused]
    memory = cache_needs(header, metadata, context_tokens=target_context, slow_pairs=slow_pairs)
    warnings = [
        *plan.warnings(refused, far="global" in kinds),
        *_left_out(slow_pairs or ()),
        *_memory_warnings(header, metadata, memory, memory_bytes),
    ]
    advice = Advice(
        target_context=target_context,
        original_context=trained.tokens,
        ratio=plan.growth,
        trained=trained,
        options=tuple(options),
        memory=memory,
        warnings=tuple(warnings),
        comparison=plan.comparison([each for each in candidates if each.method not in refused]),
    )
    return _for_its_purpose(advice, header, purpose(metadata))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """An option that may be refused; without a `request` nothing is patched."""

    method: str
    reasons: tuple[str, ...]
    risk: Risk
    request: ScalingRequest | None = None
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """The candidates for one model and one target.

    `context` is the trained context, from which every scaling starts and how far the target is
    counts. `declared` is what the file says, `metadata` what it said before our own patches.
    """

    declared: RopeMetadata
    metadata: RopeMetadata
    arch: Architecture
    file: str
    target: int
    context: int

    @property
    def growth(self) -> float:
        return self.target / self.context

    @property
    def is_covered(self) -> bool:
        """Whether the file as it stands declares the target and rotates for it."""
        reached = self.declared.context_length or 0
        if self.declared.trained is None:
            reached = min(reached, self.context)
        return self.target <= reached

    @property
    def _times(self) -> str:
        return f"{self.growth:.3g} times the trained context"

    def nothing(self) -> _Candidate:
        reached = self.declared.context_length
        return _Candidate(
            method="as it is",
            reasons=(f"the file declares {reached} tokens, which covers {self.target}",),
            risk="none",
            command=validate_command(self.file, [self.target]),
        )

    def longer(self, trained: TrainedContext) -> _Candidate:
        """The rotation covers the target, and the declared context length does not."""
        return _Candidate(
            method="raise the context length",
            reasons=(
                f"the rotation of the file reaches {trained.tokens} tokens: {trained.source}",
            ),
            risk="none",
            request=ScalingRequest(scaling="none", target_context=self.target),
        )

    def windows_only(self) -> _Candidate:
        return _Candidate(
            method="raise the context length",
            reasons=(
                "only sliding-window layers rotate in this model: scaling would change what works",
            ),
            risk="none",
            request=ScalingRequest(scaling="none", target_context=self.target),
        )

    def scaled(self) -> list[_Candidate]:
        """Every scheme, in the order of MEASURED; first linear where the model was trained so."""
        ranked = [self.yarn(), self.ntk(), self.linear()]
        if self._linear_file:
            ranked = [self.linear(), self.yarn(), self.ntk()]
        if self.arch.has_long_short_factors:
            ranked.insert(1, self.keep_short_context())
            if self.growth >= USUAL_REACH and declared_scaling(self.metadata) is None:
                ranked.append(self.searched())
        return ranked

    def _measured(self, method: str) -> tuple[str, ...]:
        """What was measured of `method` at the next multiple; nothing for a scaled file."""
        if declared_scaling(self.metadata) is not None:
            return ()
        multiple = next((each for each in MEASURED[method] if each >= self.growth), None)
        if multiple is None:
            return (f"nothing was measured beyond {max(MEASURED[method])} times",)
        found, plain = MEASURED[method][multiple], MEASURED["as it is"][multiple]
        text = f"{found:.0%} of needles recalled (without scaling {plain:.0%})"
        return (f"measured on a small model at {multiple} times: {text}",)

    @property
    def _linear_file(self) -> bool:
        scaled = declared_factor(self.metadata) > 1
        return scaled and self.metadata.scaling_type in (None, "linear")

    def yarn(self) -> _Candidate:
        if self.growth <= USUAL_REACH:
            reasons = [f"{self._times} is within YaRN's usual reach"]
        else:
            reasons = [f"{self._times} is beyond the {USUAL_REACH:g} that YaRN usually holds"]
        reasons += self._measured("YaRN")
        request = self._request("yarn")
        published = published_original(self.metadata)
        if published is not None:
            request = replace(request, original_context=published)
            reasons.append(
                f"over {published} tokens, as the authors give it: the {self.context} that the "
                "file declares have room for an answer"
            )
        if raises_factor(request, self.metadata):
            reasons.append("the model was made for YaRN: raise its factor and nothing else")
        if self._larger is not None:
            reasons.append(
                f"where the earliest tokens are lost, try a larger factor, such as {self._larger}"
            )
        return _Candidate(
            method="YaRN",
            reasons=tuple(reasons),
            risk="low" if self.growth <= USUAL_REACH else "moderate",
            request=request,
        )

    @property
    def _larger(self) -> str | None:
        """A larger factor than the target's, None where the factor is not ours to choose."""
        metadata = self.metadata
        if declared_scaling(metadata) is not None or published_original(metadata) is not None:
            return None
        return f"{BEYOND * self.growth:.3g}"

    def ntk(self) -> _Candidate:
        within = "within" if self.growth <= NTK_REACH else "beyond"
        return _Candidate(
            method="NTK-aware",
            reasons=(
                f"{self._times} is {within} the {NTK_REACH:g} that a new base usually holds",
                *self._measured("NTK-aware"),
                "one key, read for every architecture and by every runtime",
            ),
            risk="low" if self.growth <= USUAL_REACH else "moderate",
            request=self._request("ntk"),
        )

    def linear(self) -> _Candidate:
        trained = self._linear_file
        reason = (
            "the model was trained with linear scaling: raise its factor and nothing else"
            if trained
            else "hardly works without training: every position moves closer to its neighbor"
        )
        return _Candidate(
            method="linear",
            reasons=(reason, *self._measured("linear")),
            risk="moderate" if trained else "high",
            request=self._request("linear"),
        )

    def keep_short_context(self) -> _Candidate:
        has_long = self.metadata.tensor(ROPE_FACTORS_LONG) is not None
        short = (self.metadata.original_context if has_long else None) or self.context
        return _Candidate(
            method="YaRN in long factors only",
            reasons=(
                f"contexts up to {short} tokens stay exactly as they are",
                *self._measured("YaRN in long factors only"),
                f"{self.arch.name} chooses long or short factors by the length of the context",
                "without YaRN's attention factor, which would act in short contexts too",
            ),
            risk="none",
            request=replace(self._request("yarn"), keep_short_context=True),
        )

    def searched(self) -> _Candidate:
        return _Candidate(
            method="searched factors",
            reasons=(
                f"{self._times} is far: factors searched for this model may do better than YaRN",
                "costs many evaluations of the model; the result says whether it beat YaRN",
            ),
            risk="none",
            command=search_command(self.file, self.target),
        )

    def _request(self, scaling: Literal["yarn", "ntk", "linear"]) -> ScalingRequest:
        return ScalingRequest(scaling=scaling, target_context=self.target)

    def refusal(self, candidate: _Candidate) -> str | None:
        """Return why a patch would refuse this, None where it would not."""
        return None if candidate.request is None else refusal(candidate.request, self.declared)

    def _scheme(self, request: ScalingRequest | None) -> RopeScaling | None:
        return None if request is None else encode_request(request, self.declared)[0].scaling

    def option(self, candidate: _Candidate) -> Option:
        commands: tuple[str, ...] = (candidate.command,)
        if candidate.request is not None:
            output = self._output(candidate.request)
            commands = (
                patch_command(candidate.request, self.file, output),
                probe_command(output),
                validate_command(output),
                serve_command(output, self.target),
            )
        return Option(
            method=candidate.method,
            scaling=self._scheme(candidate.request),
            reasons=candidate.reasons,
            short_context_risk=candidate.risk,
            commands=commands,
        )

    def comparison(self, candidates: list[_Candidate]) -> str | None:
        """Return the command that measures the schemes of these candidates, and the plain file."""
        requests = [each.request for each in candidates if each.request is not None]
        schemes: list[str] = []
        for name in dict.fromkeys(each.scaling for each in requests if each.scaling != "none"):
            schemes.append(name)
            if name == "yarn" and self._larger is not None:
                schemes.append(f"yarn-{self._larger}x")
        if not schemes:
            return None
        return compare_command(self.file, ("none", *schemes), self.target)

    def _output(self, request: ScalingRequest) -> str:
        """The name of a new file beside the model: its own with the scheme and the context."""
        kept = "-keep-short" if request.keep_short_context else ""
        return name_beside(self.file, f"-{request.scaling}{kept}-{self.target}")

    def warnings(self, refused: Mapping[str, str], *, far: bool) -> list[str]:
        warnings = []
        if self.arch.caveat is not None:
            warnings.append(f"{self.arch.name}: {self.arch.caveat}")
        if far and (warning := far_warning(self.growth)) is not None:
            warnings.append(warning)
        scaled = declared_scaling(self.metadata)
        if scaled is not None and refused:
            warnings.append(
                f"the file is already scaled ({scaled}); not proposed, as a patch with it would "
                f"not start from that: {', '.join(refused)}"
            )
        else:
            warnings += [f"{method} is not possible: {why}" for method, why in refused.items()]
        return warnings


def contexts_to_measure(trained: int, target: int) -> tuple[int, ...]:
    """Return the lengths that show whether a model reaches `target` tokens: the trained context and
    its doublings up to the target; of a target within it, a quarter, a half and the whole."""
    if target <= trained:
        return tuple(dict.fromkeys((max(1, target // 4), max(1, target // 2), target)))
    steps = []
    length = trained
    while length < target:
        steps.append(length)
        length *= 2
    return (*steps, target)


def _for_its_purpose(advice: Advice, header: Header, meant: Purpose) -> Advice:
    """Return the advice without what does not apply to the model: measuring text that it does not
    generate, and a K/V cache that llama.cpp does not keep for it."""
    warnings: list[str] = []
    options, memory = advice.options, advice.memory
    if not meant.generates:
        warnings.append(
            f"this is {meant.reason}; it does not generate text token by token, so validate and "
            "search do not apply: compare its results on long texts before and after"
        )
        edits = [
            tuple(command for command in option.commands if command.startswith("ggufrope patch "))
            for option in options
        ]
        options = tuple(
            replace(option, commands=commands)
            for option, commands in zip(options, edits, strict=True)
            if commands or len(options) == 1
        )
    if not meant.keeps_cache:
        memory = ()
        weights = byte_size(sum(tensor.length for tensor in header.tensors))
        warnings.append(
            f"llama.cpp keeps no K/V cache for it: it needs {weights} for its weights, and compute "
            "buffers that grow with the batch"
        )
    return replace(
        advice,
        options=options,
        memory=memory,
        warnings=(*warnings, *advice.warnings),
        comparison=advice.comparison if meant.generates else None,
    )


def _left_out(slow_pairs: Collection[tuple[str, str]]) -> list[str]:
    pairs = ((choice.k_type, choice.v_type) for choice in CACHE_CHOICES)
    left = ", ".join("/".join(pair) for pair in pairs if pair in slow_pairs)
    if not left:
        return []
    why = "with this build of llama.cpp its attention leaves the GPU"
    return [f"a cache of {left} is left out: {why}; `ggufrope doctor` says how to get one"]


def _memory_warnings(
    header: Header,
    metadata: RopeMetadata,
    memory: tuple[MemoryNeed, ...],
    memory_bytes: int | None,
) -> list[str]:
    """Return which cache type fits, or how far the smallest reaches."""
    if memory_bytes is None or not memory or not purpose(metadata).keeps_cache:
        return []
    device = byte_size(memory_bytes)
    fitting = next((need for need in memory if need.total_bytes <= memory_bytes), None)
    if fitting is memory[0]:
        return []
    if fitting is not None:
        kinds = f"{fitting.k_type}/{fitting.v_type}"
        total = byte_size(fitting.total_bytes)
        return [f"f16 does not fit {device}: use a {kinds} cache, {total} in all"]
    best = memory[-1]
    reach = longest_context(
        header, metadata, budget_bytes=memory_bytes, k_type=best.k_type, v_type=best.v_type
    )
    kinds, need = f"{best.k_type}/{best.v_type}", byte_size(best.total_bytes)
    rest = f"the longest context that fits is {reach} tokens" if reach else "no context fits at all"
    return [f"no cache type fits: {kinds} needs {need} of {device}; {rest}"]
