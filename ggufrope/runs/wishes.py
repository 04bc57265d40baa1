"""A trial, with the files it names read: a Wish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

if TYPE_CHECKING:
    from ..patching import Wish
    from ..rope.factors import FactorFormat, FactorSet
    from ..rope.huggingface import ConfigRope
    from .plan import Trial


def wish_of(trial: Trial, *, target_context: int | None = None) -> Wish:
    """The wish that `trial` says; `target_context` where neither it nor a factor says how far.

    Raises WishError or StorageError where a file it names cannot be read or makes no sense.
    """
    from ..patching import Wish

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
    from ..errors import WishError
    from ..rope.factors import FactorFormat

    form = path.suffix.removeprefix(".").lower()
    if form not in get_args(FactorFormat):
        raise WishError(f"{path}: factor arrays are kept in .json, .csv or .npy files")
    return cast("FactorFormat", form)


def read_factors(path: Path) -> FactorSet:
    """The factor arrays in a json, csv or npy file."""
    from ..rope.factors import parse_factors

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
    from ..errors import WishError
    from ..rope.huggingface import from_config

    try:
        config: Any = json.loads(_read(path))
    except ValueError as error:
        raise WishError(f"{path}: not JSON ({error})") from error
    return from_config(config)


def _read(path: Path) -> bytes:
    from ..errors import StorageError

    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
