"""A target context length -> what to try, in order, and whether it fits.

The order rests on published measurements of scaling without training, and on ours: NTK-aware
holds up to about twice the original context, YaRN to about eight times, linear interpolation
hardly at all unless the model was trained with it; searched factors beat them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ggufrope._format import byte_size
from ggufrope.advice.memory import MemoryNeed, longest_context, memory_need
from ggufrope.errors import RequestError
from ggufrope.rope.architectures import Architecture, architecture
from ggufrope.rope.keys import ROPE_FACTORS_LONG
from ggufrope.rope.layers import layer_kinds
from ggufrope.rope.llamacpp import rotary_dimensions
from ggufrope.rope.scaling import Linear, NtkAware, RopeScaling, Yarn

if TYPE_CHECKING:
    from ggufrope.container.types import Header
    from ggufrope.rope.metadata import RopeMetadata

Risk: TypeAlias = Literal["none", "low", "moderate", "high"]

NTK_REACH = 2.0
YARN_REACH = 8.0
"""Ratios of the target to the original context up to which each holds without training."""

CACHE_CHOICES = (("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "q4_0"), ("q4_0", "q4_0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to the target: the scaling, why it stands where it does, what it does to prompts
    within the original context, and the commands that try it."""

    method: str
    scaling: RopeScaling | None
    reasons: tuple[str, ...]
    short_context_risk: Risk
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """`options` best first; `memory` one a cache type; `warnings` what none of them mends."""

    target_context: int
    original_context: int
    ratio: float
    options: tuple[Option, ...]
    memory: tuple[MemoryNeed, ...]
    warnings: tuple[str, ...] = ()


def advise(
    header: Header,
    metadata: RopeMetadata,
    *,
    target_context: int,
    memory_bytes: int | None = None,
    file: str = "MODEL.gguf",
) -> Advice:
    """Rank the ways to run the model at `target_context` tokens.

    `memory_bytes` is what the device has; `file` is how commands name the model. Raises
    RequestError
    where nothing rotates or the lengths make no sense, FileError where the file would not load.
    """
    arch = architecture(metadata.architecture)
    context = metadata.context_length
    if not context:
        raise RequestError(
            f"{metadata.key('context_length')} is missing: nothing to measure against"
        )
    if target_context < 1:
        raise RequestError(f"target context {target_context}: expected 1 token or more")
    rotary_dimensions(metadata, arch)  # refuses widths that no model has
    kinds = set(layer_kinds(metadata, arch))
    if not kinds & {"global", "sliding-window"}:
        raise RequestError(
            f"no layer of this {arch.name} model rotates: it has no RoPE to scale, and its reach "
            "is what it was trained for"
        )
    # Native factors reach the declared context by themselves: scaling starts where they end.
    original = context if metadata.factor_tensors else metadata.original_context or context
    original = min(original, context)
    plan = _Plan(metadata, arch, file, target_context, original)
    if target_context <= context:
        options = [plan.nothing()]
    elif "global" not in kinds:
        options = [plan.windows_only()]
    else:
        options = plan.scaled()
    memory = tuple(
        memory_need(header, metadata, context_tokens=target_context, k_type=k, v_type=v)
        for k, v in CACHE_CHOICES
        if _holds(header, metadata, k, v)
    )
    warnings = _warnings(header, metadata, plan, memory, memory_bytes)
    return Advice(
        target_context=target_context,
        original_context=original,
        ratio=plan.ratio,
        options=tuple(options),
        memory=memory,
        warnings=tuple(warnings),
    )


class _Plan:
    """The options for one model and one target."""

    def __init__(
        self, metadata: RopeMetadata, arch: Architecture, file: str, target: int, original: int
    ) -> None:
        self.metadata = metadata
        self.arch = arch
        self.file = file
        self.target = target
        self.original = original
        self.ratio = target / original

    def nothing(self) -> Option:
        length = self.metadata.context_length
        return Option(
            method="as it is",
            scaling=None,
            reasons=(f"the file already declares {length} tokens, which covers {self.target}",),
            short_context_risk="none",
            commands=(f"ggufrope validate {self.file} --ctx {self.target}",),
        )

    def windows_only(self) -> Option:
        return Option(
            method="raise the context length",
            scaling=None,
            reasons=(
                "only sliding-window layers rotate in this model: scaling would change what works",
            ),
            short_context_risk="none",
            commands=self._commands("none"),
        )

    def scaled(self) -> list[Option]:
        ranked = [self.yarn(), self.ntk(), self.linear()]
        if self.metadata.scaling_type in (None, "linear") and (self.metadata.factor or 1) > 1:
            ranked = [self.linear(), self.yarn(), self.ntk()]
        elif self.metadata.scaling_type != "yarn" and self.ratio <= NTK_REACH:
            ranked = [self.ntk(), self.yarn(), self.linear()]
        if self.arch.has_long_short_factors and self.metadata.tensor(ROPE_FACTORS_LONG) is None:
            ranked.insert(1, self.keep_short_context())
            if self.ratio > YARN_REACH:
                ranked.insert(0, self.searched())
        return ranked

    def yarn(self) -> Option:
        if self.ratio <= YARN_REACH:
            reasons = [f"{self.ratio:.3g} times the original context is within YaRN's reach"]
        else:
            reasons = [f"{self.ratio:.3g} times is beyond the {YARN_REACH:g} YaRN usually holds"]
        if self.metadata.scaling_type == "yarn":
            reasons.append("the model was made for YaRN: raise its factor and nothing else")
        return Option(
            method="YaRN",
            scaling=Yarn(factor=self.ratio, original_context=self.original),
            reasons=tuple(reasons),
            short_context_risk="low" if self.ratio <= 4 else "moderate",
            commands=self._commands("yarn"),
        )

    def ntk(self) -> Option:
        held = "within" if self.ratio <= NTK_REACH else "beyond"
        return Option(
            method="NTK-aware",
            scaling=NtkAware(factor=self.ratio),
            reasons=(
                f"{self.ratio:.3g} times is {held} the {NTK_REACH:g} a new base usually holds",
                "one key, read for every architecture and by every runtime",
            ),
            short_context_risk="low" if self.ratio <= NTK_REACH else "moderate",
            commands=self._commands("ntk"),
        )

    def linear(self) -> Option:
        reached = (self.metadata.factor or 1) > 1 and self.metadata.scaling_type != "yarn"
        reason = (
            "the model was trained with linear scaling: a larger factor is more of the same"
            if reached
            else "hardly works without training: every position moves closer to its neighbor"
        )
        return Option(
            method="linear",
            scaling=Linear(factor=self.ratio),
            reasons=(reason,),
            short_context_risk="moderate" if reached else "high",
            commands=self._commands("linear"),
        )

    def keep_short_context(self) -> Option:
        return Option(
            method="YaRN in long factors only",
            scaling=Yarn(factor=self.ratio, original_context=self.original, attention_factor=1.0),
            reasons=(
                f"contexts up to {self.original} tokens stay exactly as they were",
                f"{self.arch.name} chooses long or short factors by the length of the context",
                "YaRN's magnitude is left out, as it would act on both faces",
            ),
            short_context_risk="none",
            commands=self._commands("yarn", "--keep-short-context"),
        )

    def searched(self) -> Option:
        return Option(
            method="searched factors",
            scaling=None,
            reasons=(
                f"at {self.ratio:.3g} times, factors searched for this model beat every formula",
                "takes a GPU and hours",
            ),
            short_context_risk="none",
            commands=(f"ggufrope search {self.file} --target-ctx {self.target}",),
        )

    def _commands(self, scaling: str, *more: str) -> tuple[str, ...]:
        given = ["--scaling", scaling, "--target-ctx", str(self.target)]
        if scaling != "none":
            given += ["--orig-ctx", str(self.original)]
        options = " ".join([*given, *more])
        lengths = ",".join(str(n) for n in _steps(self.original, self.target))
        return (
            f"ggufrope validate {self.file} --ctx {lengths} {options}",
            f"ggufrope patch {self.file} -o PATCHED.gguf {options}",
        )


def _steps(original: int, target: int) -> list[int]:
    """Lengths to test: the original context and its doublings up to the target."""
    steps = []
    length = original
    while length < target:
        steps.append(length)
        length *= 2
    return [*steps, target]


def _holds(header: Header, metadata: RopeMetadata, k_type: str, v_type: str) -> bool:
    try:
        memory_need(header, metadata, context_tokens=1, k_type=k_type, v_type=v_type)
    except RequestError:
        return False
    return True


def _warnings(
    header: Header,
    metadata: RopeMetadata,
    plan: _Plan,
    memory: tuple[MemoryNeed, ...],
    memory_bytes: int | None,
) -> list[str]:
    warnings = []
    if plan.arch.caveat is not None:
        warnings.append(f"{plan.arch.name}: {plan.arch.caveat}")
    if plan.ratio > YARN_REACH and plan.target > (metadata.context_length or 0):
        warnings.append(
            f"{plan.ratio:.3g} times the original context is far: expect recall to fail without "
            "training, and measure every doubling on the way"
        )
    if memory_bytes is not None and memory:
        fitting = [need for need in memory if need.total_bytes <= memory_bytes]
        if not fitting:
            best = memory[-1]
            reach = longest_context(
                header,
                metadata,
                budget_bytes=memory_bytes,
                k_type=best.k_type,
                v_type=best.v_type,
            )
            rest = f"the longest context that fits is {reach} tokens"
            warnings.append(
                f"no cache type fits: {best.k_type}/{best.v_type} needs "
                f"{byte_size(best.total_bytes)} "
                f"of {byte_size(memory_bytes)}; {rest if reach else 'no context at all fits'}"
            )
        elif fitting[0] is not memory[0]:
            first = fitting[0]
            warnings.append(
                f"f16 does not fit {byte_size(memory_bytes)}: use a {first.k_type}/{first.v_type} "
                f"cache, {byte_size(first.total_bytes)} in all"
            )
    return warnings
