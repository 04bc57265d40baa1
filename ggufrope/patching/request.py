"""What a person asks for, and the scheme that it means on a particular model.

A request is incomplete by nature: "YaRN, to 32768". `resolve` fills in the rest from what the file
declares, or says why it cannot: each refusal is a RequestError that names both sides of the
contradiction. Its messages name fields in backquotes, as `target_context`; the command line puts
its flags in their place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from ggufrope._files import read_bytes
from ggufrope.errors import RequestError
from ggufrope.rope.keys import ONE_IN_FLOAT32, ROPE_FACTORS_LONG
from ggufrope.rope.metadata import RopeMetadata
from ggufrope.rope.scaling import (
    MAX_FACTOR,
    DynamicNtk,
    FrequencyFactors,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    NtkByParts,
    RopeScaling,
    Unscaled,
    Yarn,
)
from ggufrope.rope.trained import (
    TrainedContext,
    declared_factor,
    declared_scaling,
    trained_context,
    trained_state,
)

if TYPE_CHECKING:
    from ggufrope.rope.factors import FactorFormat, FactorSet


Scheme: TypeAlias = Literal[
    "none",
    "linear",
    "ntk",
    "dynamic-ntk",
    "ntk-by-parts",
    "yarn",
    "llama3",
    "longrope",
    "factors",
]
ScalingName: TypeAlias = Literal["file", Scheme]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

_PARAMETERS: dict[Scheme, frozenset[str]] = {
    "none": frozenset(),
    "linear": frozenset({"factor"}),
    "ntk": frozenset({"factor"}),
    "dynamic-ntk": frozenset({"factor"}),
    "ntk-by-parts": frozenset({"factor", "beta_fast", "beta_slow"}),
    "yarn": frozenset({"factor", "beta_fast", "beta_slow", "ext_factor", "attn_factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "longrope": frozenset({"factor", "long_factors", "short_factors", "attn_factor"}),
    "factors": frozenset({"factor", "long_factors", "attn_factor"}),
}
_ANY_SCHEME = frozenset(
    {
        "scaling",
        "label",
        "from_config",
        "target_context",
        "original_context",
        "freq_base",
        "bake",
        "keep_short_context",
        "replace_scaling",
    }
)


_GROWING = ("linear", "ntk", "dynamic-ntk", "ntk-by-parts", "yarn", "llama3")
"""Schemes of which nothing is left at a factor of 1."""


def _option(help_: str, unit: str | None = None) -> Any:
    """A field that is None unless given: its help in plans and on the command line, its unit."""
    return field(default=None, metadata={"help": help_, "unit": unit})


def _switch(help_: str, *, was: str | None = None) -> Any:
    """A field that is off unless given, and its name in the version before."""
    return field(default=False, metadata={"help": help_, "was": was})


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRequest:
    """A RoPE scaling that a person asks for: the options of `patch`, or a table of a plan.

    What is None follows from the file. Contexts are in tokens. `scaling` "file" is the model as it
    stands, or with `from_config` what the config says. `attn_factor` is the attention factor wanted
    on q and k (transformers' `attention_factor`), not the value of any one key.
    """

    scaling: ScalingName = field(metadata={"help": "the scaling scheme", "unit": "scheme"})
    label: str | None = _option("the name in reports; default: the scheme and factor")
    factor: float | None = _option(
        "target context over original context; default: what the target takes", "factor"
    )
    target_context: int | None = _option("context length to reach, in tokens", "tokens")
    original_context: int | None = _option(
        "context length before any scaling, in tokens; default: the file's", "tokens"
    )
    freq_base: float | None = _option("RoPE base (theta); default: the file's", "base")
    beta_fast: float | None = _option(
        "YaRN beta_fast: dimensions that turn more often than this within the original context "
        "are not interpolated; default: 32",
        "turns",
    )
    beta_slow: float | None = _option(
        "YaRN beta_slow: dimensions that turn less often than this within the original context "
        "are interpolated in full; default: 1",
        "turns",
    )
    ext_factor: float | None = _option(
        "YaRN extrapolation mix, 0 to 1 (llama.cpp --yarn-ext-factor); default: 1", "mix"
    )
    attn_factor: float | None = _option(
        "attention factor: what rotated q and k are multiplied by; default: the scheme's own, for "
        "YaRN 1 + 0.1 ln factor",
        "factor",
    )
    low_freq_factor: float | None = _option("Llama 3 low_freq_factor; default: 1", "turns")
    high_freq_factor: float | None = _option("Llama 3 high_freq_factor; default: 4", "turns")
    long_factors: str | tuple[float, ...] | None = _option(
        "one divisor per rotary pair: a json, csv or npy file, or the numbers as a JSON array",
        "file",
    )
    short_factors: str | tuple[float, ...] | None = _option(
        "LongRoPE divisors up to the original context; default: 1, no scaling there", "file"
    )
    from_config: str | None = _option(
        "Hugging Face config.json to take the scaling from, in place of a scheme", "file"
    )
    bake: bool = _switch("write the scheme as factor tensors, past keys that llama.cpp ignores")
    keep_short_context: bool = _switch(
        "scale only beyond the original context, with long factors of their own (implies bake)",
        was="two_faced",
    )
    replace_scaling: bool = _switch(
        "drop the scaling that the file has, even if the model was trained with it"
    )

    @property
    def is_file(self) -> bool:
        """Whether this is the model as it stands."""
        return self.scaling == "file" and self.from_config is None

    @property
    def name(self) -> str:
        """The label, or the scheme with its factor where one is given."""
        if self.label is not None:
            return self.label
        if self.from_config is not None:
            return "from-config"
        return self.scaling if self.factor is None else f"{self.scaling}-{self.factor:g}x"

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that the request names."""
        named = (self.long_factors, self.short_factors, self.from_config)
        return tuple(name for name in named if isinstance(name, str))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A request resolved for one model: the scheme, contexts in tokens, and bases to write, that of
    sliding-window layers only where a config has another than the file."""

    scaling: RopeScaling
    original_context: int
    context_length: int
    freq_base: float | None
    sliding_base: float | None = None


def check_parameters(request: ScalingRequest) -> None:
    """Raise RequestError where the request has a parameter that its scheme does not take: what can
    be said of it before there is a model."""
    if request.from_config is not None:
        if extra := sorted(_given(request) - (_ANY_SCHEME - {"scaling"})):
            raise RequestError(f"`from_config` gives the scheme: leave out {_names(extra)}")
    elif request.scaling != "file":
        if request.scaling in SCHEMES:  # `resolve` refuses the others
            _refuse_foreign(request, request.scaling)
    elif given := sorted(_given(request) - {"label"}):
        need = "needs" if len(given) == 1 else "need"
        raise RequestError(f"{_names(given)} {need} `scaling`: the model as it stands has its own")


def resolve(request: ScalingRequest, metadata: RopeMetadata) -> Target:
    """Return the scheme and context length that `request` means on this model.

    A scheme starts from the rotation that the file has, in the context it was trained for: see
    `start_of`. Raises RequestError where the request contradicts itself or what the file declares.
    """
    if request.freq_base is not None and not (
        math.isfinite(request.freq_base) and request.freq_base > ONE_IN_FLOAT32
    ):
        raise RequestError(f"`freq_base` {request.freq_base:g} must be a finite number above 1")
    if request.from_config is not None:
        return _resolve_config(request, trained_state(metadata))
    if request.scaling == "file":
        raise RequestError(f"missing `scaling`; choose one of: {', '.join(SCHEMES)}")
    if request.scaling not in SCHEMES:
        raise RequestError(f"`scaling` {request.scaling}: expected one of {', '.join(SCHEMES)}")
    _refuse_foreign(request, request.scaling)
    scheme, request = request.scaling, _from_original(request, metadata)
    start = start_of(request, metadata)
    if scheme == "none":
        if request.target_context is not None:
            _check_target(request.target_context, start)
        return Target(
            scaling=Unscaled(),
            original_context=start.context,
            context_length=request.target_context or start.context,
            freq_base=request.freq_base,
        )
    factor, target = _factor_and_target(request, start)
    return Target(
        scaling=_scheme(request, scheme, factor, start),
        original_context=start.context,
        context_length=target,
        freq_base=request.freq_base,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a scaling starts on one model; contexts in tokens.

    context: the context that the scheme's factor counts from. Where the scheme raises the factor
        that the file has, that is the context before it, and `raised` is that factor; else it is
        the trained context.
    reached: the context that the file reaches already.
    ramp: the context in which plain RoPE of the file's base turns as often as the file does within
        its trained context: schemes that tell fast pairs from slow ones count turns in it.
    """

    context: int
    reached: int
    ramp: int
    raised: float = 1.0


def start_of(request: ScalingRequest, metadata: RopeMetadata) -> Start:
    """Return where the scheme of `request` starts on this model.

    Linear onto linear, and YaRN onto YaRN, raise the factor that the file has. Anything else goes
    on top of the rotation that it has within its trained context. Raises RequestError where
    `original_context` says another start than the file.
    """
    asked = request.original_context
    if asked is not None and asked < 1:
        raise RequestError(f"`original_context` {asked} must be 1 or more")
    trained, state = trained_context(metadata), trained_state(metadata)
    declared = declared_scaling(state)
    if trained is None:
        if asked is None:
            raise RequestError("the file declares no context length: give `original_context`")
        return Start(context=asked, reached=asked, ramp=asked)
    if request.replace_scaling:
        long = state.tensor(ROPE_FACTORS_LONG) is not None
        context = asked or (state.original_context if long else None) or trained.original
        return Start(context=context, reached=context, ramp=context)
    if declared is None:
        context = asked or trained.tokens
        return Start(context=context, reached=context, ramp=context)
    if raises_factor(request, state):
        if asked not in (None, trained.original):
            raise RequestError(_other_start(declared, asked, trained))
        return Start(
            context=trained.original,
            reached=trained.tokens,
            ramp=trained.original,
            raised=declared_factor(state),
        )
    if asked not in (None, trained.tokens):
        raise RequestError(_other_start(declared, asked, trained))
    return Start(context=trained.tokens, reached=trained.tokens, ramp=trained.original)


def _from_original(request: ScalingRequest, metadata: RopeMetadata) -> ScalingRequest:
    """Return a request that raises a factor and counts from the trained context, as one that counts
    from the original context."""
    trained = trained_context(metadata)
    asked = request.original_context
    if trained is None or request.replace_scaling or asked != trained.tokens:
        return request
    if not raises_factor(request, trained_state(metadata)):
        return request
    growth = trained.tokens / trained.original
    factor = None if request.factor is None else request.factor * growth
    return replace(request, original_context=None, factor=factor)


def raises_factor(request: ScalingRequest, state: RopeMetadata) -> bool:
    """Return whether the request is for more of the scaling that the file has."""
    if declared_factor(state) <= 1:
        return False
    kind = state.scaling_type or "linear"
    if request.scaling == "linear":
        return kind in ("linear", "longrope")
    return request.scaling == kind == "yarn"


def _other_start(declared: str, asked: int | None, trained: TrainedContext) -> str:
    return (
        f"`original_context` {asked} is not where a scaling of this file starts: it is scaled "
        f"already ({declared}) and reaches {trained.tokens} tokens ({trained.source}). Leave "
        "`original_context` out to extend that, or give `replace_scaling` to drop the scaling that "
        "the file has"
    )


def _resolve_config(request: ScalingRequest, metadata: RopeMetadata) -> Target:
    """Return the scheme of a config.json; RequestError where it is of another model.

    What the config leaves to its model class stays as the file has it.
    """
    from ggufrope.patching import config_file

    check_parameters(request)
    config = config_file.read_config(Path(request.from_config or ""))
    config_file.check_model(config, metadata)
    original = request.original_context or getattr(config.scaling, "original_context", None)
    original = original or metadata.context_length
    target = request.target_context or config.reach(metadata.context_length)
    if original is None or target is None:
        raise RequestError("neither config nor file has a context length: give `target_context`")
    scaling = config.scaling
    if (
        isinstance(scaling, Yarn)
        and scaling.mscale_all_dim is None
        and metadata.yarn_log_multiplier
    ):
        scaling = replace(scaling, mscale_all_dim=0.0)  # the file's is not the config's
    base = request.freq_base or config_file.config_base(config, metadata)
    return Target(
        scaling=scaling,
        original_context=original,
        context_length=target,
        freq_base=base,
        sliding_base=config_file.sliding_base(config, metadata, base),
    )


def _given(request: ScalingRequest) -> set[str]:
    """Return the fields that the request sets."""
    values = {field.name: getattr(request, field.name) for field in fields(request)}
    if request.scaling == "file":
        del values["scaling"]
    return {name for name, value in values.items() if value is not None and value is not False}


def _refuse_foreign(request: ScalingRequest, scheme: Scheme) -> None:
    if foreign := sorted(_given(request) - _ANY_SCHEME - _PARAMETERS[scheme]):
        do = "does" if len(foreign) == 1 else "do"
        raise RequestError(f"{_names(foreign)} {do} not apply to `scaling` {scheme}")


def _names(fields_: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in fields_)


def _check_target(target: int, start: Start) -> None:
    if target < start.reached:
        raise RequestError(
            f"`target_context` {target} is below the {start.reached} tokens that the file reaches "
            "as it is: there is nothing to extend; set the shorter context at run time"
        )


def check_growth(request: ScalingRequest, metadata: RopeMetadata) -> None:
    """Raise RequestError where a request reaches for no more tokens than the file does already.

    To measure such a request is fine, to write it is not: its scheme would do nothing.
    """
    target, scheme = request.target_context, request.scaling
    if target is None or request.factor is not None or scheme not in _GROWING:
        return
    reached = start_of(_from_original(request, metadata), metadata).reached
    if target == reached:
        raise RequestError(
            f"`target_context` {target} is what the file reaches as it is: nothing to extend"
        )


def _factor_and_target(request: ScalingRequest, start: Start) -> tuple[float, int]:
    target, factor, context = request.target_context, request.factor, start.context
    if target is not None:
        _check_target(target, start)
    if factor is None:
        if target is None:
            raise RequestError("missing `target_context` or `factor`: give how far to extend")
        if target / context > MAX_FACTOR:
            raise RequestError(
                f"`target_context` {target} is more than {MAX_FACTOR:g} times the {context} tokens "
                "that the scaling starts from: give a length in tokens that a model can reach"
            )
        return max(target / context, start.raised), target
    Linear(factor=factor)  # refuses a factor that is no extension before it is multiplied
    reach = math.floor(context * factor)
    if target is not None and target > reach:
        raise RequestError(
            f"`factor` {factor:g} takes {context} tokens to {reach}, not to `target_context` "
            f"{target}: leave the factor out, or raise it"
        )
    if factor < start.raised:
        raise RequestError(
            f"`factor` {factor:g} counts from {context} tokens, and the file has {start.raised:g} "
            f"there already, which reaches {start.reached} tokens: give a larger factor, or "
            "`target_context` alone"
        )
    return factor, target or reach


def _scheme(request: ScalingRequest, scheme: Scheme, factor: float, start: Start) -> RopeScaling:
    original = start.ramp

    def given(**names: str) -> dict[str, Any]:
        values = {to: getattr(request, name) for to, name in names.items()}
        return {to: value for to, value in values.items() if value is not None}

    match scheme:
        case "linear":
            return Linear(factor=factor)
        case "ntk":
            return NtkAware(factor=factor)
        case "dynamic-ntk":
            return DynamicNtk(factor=factor, original_context=start.context)
        case "ntk-by-parts":
            betas = given(beta_fast="beta_fast", beta_slow="beta_slow")
            return NtkByParts(factor=factor, original_context=original, **betas)
        case "yarn":
            values = given(
                beta_fast="beta_fast",
                beta_slow="beta_slow",
                ext_factor="ext_factor",
                attention_factor="attn_factor",
            )
            return Yarn(factor=factor, original_context=original, **values)
        case "llama3":
            limits = given(low_freq_factor="low_freq_factor", high_freq_factor="high_freq_factor")
            return Llama3(factor=factor, original_context=original, **limits)
        case "longrope":
            long, short = _factors(request, scheme)
            return LongRope(
                long_factors=long,
                short_factors=short or (1.0,) * len(long),
                original_context=start.context,
                factor=factor,
                attention_factor=request.attn_factor,
            )
        case "factors":
            attention = given(attention_factor="attn_factor")
            return FrequencyFactors(factors=_factors(request, scheme)[0], **attention)
    raise RequestError(f"`scaling` {scheme} has no factor")


def _factors(
    request: ScalingRequest, scheme: Scheme
) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """Return long (or the only) and short factors; one file may hold both."""
    long, short = request.long_factors, request.short_factors
    beside: tuple[float, ...] | None = None
    if isinstance(long, str):
        stored = read_factors(Path(long))
        long, beside = stored.long or stored.factors, stored.short
    if isinstance(short, str):
        stored = read_factors(Path(short))
        short = stored.short or stored.factors
    if long is None:
        raise RequestError(f"`scaling` {scheme} needs `long_factors`, a json, csv or npy file")
    return long, short or (beside if scheme == "longrope" else None)


def factor_format(path: Path) -> FactorFormat:
    """Return the format that the name of a factors file says."""
    from ggufrope.rope.factors import FactorFormat

    form = path.suffix.removeprefix(".").lower()
    if form not in get_args(FactorFormat):
        raise RequestError(f"{path}: factors are stored as .json, .csv or .npy; rename the file")
    return cast("FactorFormat", form)


def read_factors(path: Path) -> FactorSet:
    """Read the factor arrays of a json, csv or npy file."""
    from ggufrope.rope.factors import parse_factors

    return parse_factors(read_bytes(path), form=factor_format(path), name=str(path))
