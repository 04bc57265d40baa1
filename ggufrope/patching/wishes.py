"""A wish in words and names of files, as options and plans say it; and the Wish it comes to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from ggufrope.patching.wish import Scheme, Wish

if TYPE_CHECKING:
    from ggufrope.rope.factors import FactorFormat, FactorSet
    from ggufrope.rope.huggingface import ConfigRope

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
    two_faced: bool = field(
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


def wish_of(trial: Trial, *, target_context: int | None = None) -> Wish:
    """The wish that `trial` says; `target_context` where neither it nor a factor says how far.

    Raises WishError or StorageError where a file it names cannot be read or makes no sense.
    """
    long, short = _factor_arrays(trial)
    return Wish(
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
        two_faced=trial.two_faced,
        given=None if trial.from_config is None else _config(Path(trial.from_config)),
    )


def factor_format(path: Path) -> FactorFormat:
    """The format that the name of a factors file says."""
    from ggufrope.errors import WishError
    from ggufrope.rope.factors import FactorFormat

    form = path.suffix.removeprefix(".").lower()
    if form not in get_args(FactorFormat):
        raise WishError(f"{path}: factor arrays are kept in .json, .csv or .npy files")
    return cast("FactorFormat", form)


def read_factors(path: Path) -> FactorSet:
    """The factor arrays in a json, csv or npy file."""
    from ggufrope.rope.factors import parse_factors

    return parse_factors(_read(path), form=factor_format(path), name=str(path))


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
    from ggufrope.errors import WishError
    from ggufrope.rope.huggingface import from_config

    try:
        config: Any = json.loads(_read(path))
    except ValueError as error:
        raise WishError(f"{path}: not JSON ({error})") from error
    return from_config(config)


def _read(path: Path) -> bytes:
    from ggufrope.errors import StorageError

    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
