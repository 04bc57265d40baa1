"""What a person asks for, and the scheme it comes to on a particular model.

A request is incomplete by nature: "YaRN, to 32768". Resolving it against what the file declares
fills in the rest or says why it cannot be: every refusal is a RequestError that names both sides of
the contradiction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from ggufrope._files import read_bytes, read_json
from ggufrope.errors import RequestError
from ggufrope.rope.huggingface import ConfigRope
from ggufrope.rope.metadata import RopeMetadata
from ggufrope.rope.scaling import (
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRequest:
    """A RoPE scaling that a person asks for: the options of `patch`, a table of a plan.

    What is None follows from the file. Contexts are in tokens. `scaling` "file" is the model as it
    stands, or with `from_config` what the config says. `attn_factor` is the attention factor wanted
    on q and k (transformers' `attention_factor`), not the value of any one key.
    """

    scaling: ScalingName
    label: str | None = field(
        default=None, metadata={"help": "the name in reports; the scheme and factor by default"}
    )
    factor: float | None = field(
        default=None, metadata={"help": "target context over original context"}
    )
    target_context: int | None = None
    original_context: int | None = None
    freq_base: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    ext_factor: float | None = None
    attn_factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    long_factors: str | tuple[float, ...] | None = field(
        default=None,
        metadata={"help": "one number per rotary pair: a json, csv or npy file, or the numbers"},
    )
    short_factors: str | tuple[float, ...] | None = None
    from_config: str | None = field(
        default=None, metadata={"help": "a Hugging Face config.json to take the scaling from"}
    )
    bake: bool = field(default=False, metadata={"help": "put the scheme into factor tensors"})
    keep_short_context: bool = field(
        default=False,
        metadata={"help": "bake, and leave the model as it is up to its original context"},
    )
    replace_scaling: bool = field(
        default=False,
        metadata={"help": "drop the scaling that the file has, although it was trained with it"},
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
    """A request made definite for one model: the scheme, the window it is for, and the base."""

    scaling: RopeScaling
    original_context: int
    context_length: int
    freq_base: float | None


def resolve(request: ScalingRequest, metadata: RopeMetadata) -> Target:
    """The scheme and context length that `request` means on a model that declares `metadata`."""
    if request.freq_base is not None and not (
        math.isfinite(request.freq_base) and request.freq_base > 1
    ):
        raise RequestError(f"--freq-base {request.freq_base:g} must be a finite number above 1")
    if request.from_config is not None:
        return _resolve_config(request, _config(Path(request.from_config)), metadata)
    if request.scaling == "file":
        raise RequestError("say which scheme: --scaling " + "|".join(SCHEMES))
    _refuse_foreign(request, request.scaling)
    original = _original_context(request, metadata)
    if request.scaling == "none":
        return Target(
            scaling=Unscaled(),
            original_context=original,
            context_length=request.target_context or original,
            freq_base=request.freq_base,
        )
    factor, target = _factor_and_target(request, original)
    return Target(
        scaling=_scheme(request, request.scaling, factor, original),
        original_context=original,
        context_length=target,
        freq_base=request.freq_base,
    )


def _resolve_config(request: ScalingRequest, config: ConfigRope, metadata: RopeMetadata) -> Target:
    """The scheme of a config.json, which must be of a model with these rotary dimensions."""
    if extra := sorted(_said(request) - (_ANY_SCHEME - {"scaling"})):
        raise RequestError(f"--from-config already says the scheme; leave out {_flags(extra)}")
    for what, theirs, ours in (
        ("head size", config.head_size, metadata.head_size),
        ("rotary dimensions", config.n_rot, metadata.n_rot),
    ):
        if None not in (theirs, ours) and theirs != ours:
            raise RequestError(
                f"the config is of another model: {what} {theirs}, the file has {ours}"
            )
    original = request.original_context or getattr(config.scaling, "original_context", None)
    original = original or metadata.context_length
    target = request.target_context or config.context_length or metadata.context_length
    if original is None or target is None:
        raise RequestError(
            "neither the config nor the file says a context length; give --target-ctx"
        )
    return Target(
        scaling=config.scaling,
        original_context=original,
        context_length=target,
        freq_base=request.freq_base or config.base,
    )


def _said(request: ScalingRequest) -> set[str]:
    return {
        f.name for f in fields(request) if getattr(request, f.name) not in (None, False, "file")
    }


def _refuse_foreign(request: ScalingRequest, scheme: Scheme) -> None:
    if foreign := sorted(_said(request) - _ANY_SCHEME - _PARAMETERS[scheme]):
        raise RequestError(f"{_flags(foreign)}: no such parameter in --scaling {scheme}")


def _flags(names: list[str]) -> str:
    return ", ".join("--" + name.replace("_context", "_ctx").replace("_", "-") for name in names)


def _original_context(request: ScalingRequest, metadata: RopeMetadata) -> int:
    """The window the model was trained for, before any scaling."""
    if request.original_context is not None:
        if request.original_context < 1:
            raise RequestError(f"--orig-ctx {request.original_context} must be 1 or more")
        return request.original_context
    if metadata.original_context:
        return metadata.original_context
    if not metadata.context_length:
        raise RequestError("the file declares no context length; give --orig-ctx")
    if metadata.factor is not None and metadata.factor != 1:
        raise RequestError(
            f"the file is already scaled by {metadata.factor:g} and does not say from what: "
            "give --orig-ctx, the context it was trained for"
        )
    return metadata.context_length


def _factor_and_target(request: ScalingRequest, original: int) -> tuple[float, int]:
    target, factor = request.target_context, request.factor
    if target is not None and target < original:
        raise RequestError(
            f"the target of {target} tokens is below the original context of {original}: nothing "
            "to extend, ask for the shorter context when running"
        )
    if factor is None:
        if target is None:
            raise RequestError("say how far: --target-ctx TOKENS or --factor NUMBER")
        return target / original, target
    Linear(factor=factor)  # refuses a factor that is no extension before it is multiplied
    reach = math.floor(original * factor)
    if target is not None and target > reach:
        raise RequestError(
            f"factor {factor:g} takes {original} tokens to {reach}, not to the target of {target}: "
            "leave out --factor, or raise it"
        )
    return factor, target or reach


def _scheme(request: ScalingRequest, scheme: Scheme, factor: float, original: int) -> RopeScaling:
    def said(**names: str) -> dict[str, Any]:
        values = {to: getattr(request, name) for to, name in names.items()}
        return {to: value for to, value in values.items() if value is not None}

    match scheme:
        case "linear":
            return Linear(factor=factor)
        case "ntk":
            return NtkAware(factor=factor)
        case "dynamic-ntk":
            return DynamicNtk(factor=factor, original_context=original)
        case "ntk-by-parts":
            betas = said(beta_fast="beta_fast", beta_slow="beta_slow")
            return NtkByParts(factor=factor, original_context=original, **betas)
        case "yarn":
            values = said(
                beta_fast="beta_fast",
                beta_slow="beta_slow",
                ext_factor="ext_factor",
                attention_factor="attn_factor",
            )
            return Yarn(factor=factor, original_context=original, **values)
        case "llama3":
            limits = said(low_freq_factor="low_freq_factor", high_freq_factor="high_freq_factor")
            return Llama3(factor=factor, original_context=original, **limits)
        case "longrope":
            long, short = _factors(request, scheme)
            return LongRope(
                long_factors=long,
                short_factors=short or (1.0,) * len(long),
                original_context=original,
                factor=factor,
                attention_factor=request.attn_factor,
            )
        case "factors":
            magnitude = said(attention_factor="attn_factor")
            return FrequencyFactors(factors=_factors(request, scheme)[0], **magnitude)
    raise RequestError(f"unknown scheme {scheme!r}; known: {', '.join(SCHEMES)}")


def _factors(
    request: ScalingRequest, scheme: Scheme
) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    long, short = _arrays(request)
    if long is None:
        raise RequestError(f"--scaling {scheme} needs --long-factors FILE (json, csv or npy)")
    return long, short


def factor_format(path: Path) -> FactorFormat:
    """The format that the name of a factors file says."""
    from ggufrope.errors import RequestError
    from ggufrope.rope.factors import FactorFormat

    form = path.suffix.removeprefix(".").lower()
    if form not in get_args(FactorFormat):
        raise RequestError(f"{path}: factor arrays are kept in .json, .csv or .npy files")
    return cast("FactorFormat", form)


def read_factors(path: Path) -> FactorSet:
    """The factor arrays in a json, csv or npy file."""
    from ggufrope.rope.factors import parse_factors

    return parse_factors(read_bytes(path), form=factor_format(path), name=str(path))


def _arrays(
    request: ScalingRequest,
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Long (or the only) and short factors; one file may hold both."""
    long, short = request.long_factors, request.short_factors
    beside: tuple[float, ...] | None = None
    if isinstance(long, str):
        found = read_factors(Path(long))
        long, beside = found.long or found.factors, found.short
    if isinstance(short, str):
        found = read_factors(Path(short))
        short = found.short or found.factors
    return long, short or (beside if request.scaling == "longrope" else None)


def _config(path: Path) -> ConfigRope:
    from ggufrope.rope.huggingface import from_config

    return from_config(read_json(path))
