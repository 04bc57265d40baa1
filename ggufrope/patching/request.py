"""What a person asks for, and the scheme it comes to on a particular model.

A wish is incomplete by nature: "YaRN, to 32768". Resolving it against what the file declares
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
    {"scaling", "target_context", "original_context", "freq_base", "bake", "keep_short_context"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRequest:
    """The options of `patch`, None where nothing was said.

    Contexts are in tokens. `attn_factor` is the magnitude wanted on q and k (transformers'
    `attention_factor`), not the value of any one key. `bake` puts the scheme into factor tensors,
    `keep_short_context` into the long ones alone, so that the model is itself up to its original
    context.
    `given` is a config.json, which says the scheme and its parameters itself.
    """

    scaling: Scheme | None = None
    target_context: int | None = None
    factor: float | None = None
    original_context: int | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    ext_factor: float | None = None
    attn_factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    freq_base: float | None = None
    long_factors: tuple[float, ...] | None = None
    short_factors: tuple[float, ...] | None = None
    bake: bool = False
    keep_short_context: bool = False
    given: ConfigRope | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A wish made definite for one model: the scheme, the window it is for, and the base."""

    scaling: RopeScaling
    original_context: int
    context_length: int
    freq_base: float | None


def resolve(wish: ScalingRequest, metadata: RopeMetadata) -> Target:
    """The scheme and context length that `wish` means on a model that declares `metadata`."""
    if wish.freq_base is not None and not (math.isfinite(wish.freq_base) and wish.freq_base > 1):
        raise RequestError(f"--freq-base {wish.freq_base:g} must be a finite number above 1")
    if wish.given is not None:
        return _resolve_given(wish, wish.given, metadata)
    if wish.scaling is None:
        raise RequestError("say which scheme: --scaling " + "|".join(SCHEMES))
    _refuse_foreign(wish, wish.scaling)
    original = _original_context(wish, metadata)
    if wish.scaling == "none":
        return Target(
            scaling=Unscaled(),
            original_context=original,
            context_length=wish.target_context or original,
            freq_base=wish.freq_base,
        )
    factor, target = _factor_and_target(wish, original)
    return Target(
        scaling=_scheme(wish, wish.scaling, factor, original),
        original_context=original,
        context_length=target,
        freq_base=wish.freq_base,
    )


def _resolve_given(wish: ScalingRequest, config: ConfigRope, metadata: RopeMetadata) -> Target:
    """The scheme of a config.json, which must be of a model with these rotary dimensions."""
    if extra := sorted(_said(wish) - (_ANY_SCHEME - {"scaling"}) - {"given"}):
        raise RequestError(f"--from-config already says the scheme; leave out {_flags(extra)}")
    for what, theirs, ours in (
        ("head size", config.head_size, metadata.head_size),
        ("rotary dimensions", config.n_rot, metadata.n_rot),
    ):
        if None not in (theirs, ours) and theirs != ours:
            raise RequestError(
                f"the config is of another model: {what} {theirs}, the file has {ours}"
            )
    original = wish.original_context or getattr(config.scaling, "original_context", None)
    original = original or metadata.context_length
    target = wish.target_context or config.context_length or metadata.context_length
    if original is None or target is None:
        raise RequestError(
            "neither the config nor the file says a context length; give --target-ctx"
        )
    return Target(
        scaling=config.scaling,
        original_context=original,
        context_length=target,
        freq_base=wish.freq_base or config.base,
    )


def _said(wish: ScalingRequest) -> set[str]:
    return {f.name for f in fields(wish) if getattr(wish, f.name) not in (None, False)}


def _refuse_foreign(wish: ScalingRequest, scheme: Scheme) -> None:
    if foreign := sorted(_said(wish) - _ANY_SCHEME - _PARAMETERS[scheme]):
        raise RequestError(f"{_flags(foreign)}: no such parameter in --scaling {scheme}")


def _flags(names: list[str]) -> str:
    return ", ".join("--" + name.replace("_context", "_ctx").replace("_", "-") for name in names)


def _original_context(wish: ScalingRequest, metadata: RopeMetadata) -> int:
    """The window the model was trained for, before any scaling."""
    if wish.original_context is not None:
        if wish.original_context < 1:
            raise RequestError(f"--orig-ctx {wish.original_context} must be 1 or more")
        return wish.original_context
    if metadata.original_context is not None:
        return metadata.original_context
    if metadata.context_length is None:
        raise RequestError("the file declares no context length; give --orig-ctx")
    if metadata.factor is not None and metadata.factor != 1:
        raise RequestError(
            f"the file is already scaled by {metadata.factor:g} and does not say from what: "
            "give --orig-ctx, the context it was trained for"
        )
    return metadata.context_length


def _factor_and_target(wish: ScalingRequest, original: int) -> tuple[float, int]:
    target, factor = wish.target_context, wish.factor
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


def _scheme(wish: ScalingRequest, scheme: Scheme, factor: float, original: int) -> RopeScaling:
    def said(**names: str) -> dict[str, Any]:
        values = {to: getattr(wish, name) for to, name in names.items()}
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
            long = _array(wish, scheme)
            return LongRope(
                long_factors=long,
                short_factors=wish.short_factors or (1.0,) * len(long),
                original_context=original,
                factor=factor,
                attention_factor=wish.attn_factor,
            )
        case "factors":
            magnitude = said(attention_factor="attn_factor")
            return FrequencyFactors(factors=_array(wish, scheme), **magnitude)
    raise RequestError(f"unknown scheme {scheme!r}; known: {', '.join(SCHEMES)}")


def _array(wish: ScalingRequest, scheme: Scheme) -> tuple[float, ...]:
    if wish.long_factors is None:
        raise RequestError(f"--scaling {scheme} needs --long-factors FILE (json, csv or npy)")
    return wish.long_factors


# A wish in words and names of files, as options and plans say it; and the ScalingRequest it comes
# to on a model.

TrialScheme: TypeAlias = Literal["file", Scheme]
"""A scheme to try; "file" is the model as it stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A RoPE scaling to try, with nothing written. Fields are those of `ggufrope patch`.

    What is None follows from the file: `factor` is then the largest context of the plan over the
    original context. The scheme "file" is the model as it stands.
    """

    scheme: TrialScheme
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
    long_factors: str | None = field(
        default=None, metadata={"help": "a json, csv or npy file, one number a rotary pair"}
    )
    short_factors: str | None = None
    from_config: str | None = field(
        default=None, metadata={"help": "a Hugging Face config.json to take the scaling from"}
    )
    bake: bool = field(
        default=False, metadata={"help": "try it as factor tensors, on a working copy"}
    )
    keep_short_context: bool = field(
        default=False,
        metadata={"help": "bake, and leave the model as it is up to its original context"},
    )

    @property
    def is_file(self) -> bool:
        """Whether this is the model as it stands."""
        return self.scheme == "file" and self.from_config is None

    @property
    def name(self) -> str:
        """The label, or the scheme with its factor where one is given."""
        if self.label is not None:
            return self.label
        return self.scheme if self.factor is None else f"{self.scheme}-{self.factor:g}x"


def request_of(trial: Trial, *, target_context: int | None = None) -> ScalingRequest:
    """The wish that `trial` says; `target_context` where neither it nor a factor says how far.

    Raises RequestError or StorageError where a file it names cannot be read or makes no sense.
    """
    long, short = _factor_arrays(trial)
    return ScalingRequest(
        scaling=None if trial.scheme == "file" else trial.scheme,
        target_context=trial.target_context or (None if trial.factor else target_context),
        factor=trial.factor,
        original_context=trial.original_context,
        beta_fast=trial.beta_fast,
        beta_slow=trial.beta_slow,
        ext_factor=trial.ext_factor,
        attn_factor=trial.attn_factor,
        low_freq_factor=trial.low_freq_factor,
        high_freq_factor=trial.high_freq_factor,
        freq_base=trial.freq_base,
        long_factors=long,
        short_factors=short,
        bake=trial.bake,
        keep_short_context=trial.keep_short_context,
        given=None if trial.from_config is None else _config(Path(trial.from_config)),
    )


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


def _factor_arrays(
    trial: Trial,
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Long (or the only) and short factors; one file may hold both."""
    long: tuple[float, ...] | None = None
    short: tuple[float, ...] | None = None
    if trial.long_factors is not None:
        found = read_factors(Path(trial.long_factors))
        long, short = found.long or found.factors, found.short
    if trial.short_factors is not None:
        found = read_factors(Path(trial.short_factors))
        short = found.short or found.factors
    return long, short if trial.scheme == "longrope" or trial.short_factors else None


def _config(path: Path) -> ConfigRope:
    from ggufrope.rope.huggingface import from_config

    return from_config(read_json(path))
