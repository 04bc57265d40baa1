"""The scaling options of `patch`, which `validate` and `compare` take as a trial."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import token_option

if TYPE_CHECKING:
    from ggufrope.patching.request import ScalingRequest

_GROUP = "Scaling"
SCHEME_HELP = "none, linear, ntk, dynamic-ntk, ntk-by-parts, yarn, llama3, longrope or factors."


def _option(name: str, help_: str, metavar: str) -> object:
    return typer.Option(
        name, metavar=metavar, help=help_, rich_help_panel=_GROUP, show_default=False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingOptions:
    """What the scaling options said."""

    scaling: Annotated[str | None, _option("--scaling", SCHEME_HELP, "SCHEME")] = None
    target_ctx: Annotated[
        int | None,
        token_option("--target-ctx", "Context to reach: 16384 or 16k.", _GROUP),
    ] = None
    factor: Annotated[
        float | None, _option("--factor", "Target over original context.", "FACTOR")
    ] = None
    orig_ctx: Annotated[
        int | None,
        token_option(
            "--orig-ctx", "Context the model was trained for; default: the file's.", _GROUP
        ),
    ] = None
    beta_fast: Annotated[
        float | None, _option("--beta-fast", "Turns above which pairs are kept [32].", "TURNS")
    ] = None
    beta_slow: Annotated[
        float | None,
        _option("--beta-slow", "Turns below which pairs are interpolated [1].", "TURNS"),
    ] = None
    ext_factor: Annotated[
        float | None, _option("--ext-factor", "YaRN's weight of the kept pairs, 0 to 1.", "WEIGHT")
    ] = None
    attn_factor: Annotated[
        float | None,
        _option("--attn-factor", "Magnitude on q and k; YaRN: 1 + 0.1 ln factor.", "MAGNITUDE"),
    ] = None
    low_freq_factor: Annotated[
        float | None, _option("--low-freq-factor", "Llama-3's lower limit [1].", "TURNS")
    ] = None
    high_freq_factor: Annotated[
        float | None, _option("--high-freq-factor", "Llama-3's upper limit [4].", "TURNS")
    ] = None
    freq_base: Annotated[
        float | None, _option("--freq-base", "Base in place of the file's.", "BASE")
    ] = None
    long_factors: Annotated[
        Path | None, _option("--long-factors", "Factor array: json, csv or npy.", "FILE")
    ] = None
    short_factors: Annotated[
        Path | None, _option("--short-factors", "Factors up to the original context.", "FILE")
    ] = None
    from_config: Annotated[
        Path | None, _option("--from-config", "Scheme of a Hugging Face config.json.", "FILE")
    ] = None
    bake: Annotated[bool, _option("--bake", "Put the scheme into factor tensors.", "")] = False
    keep_short_context: Annotated[
        bool,
        _option(
            "--keep-short-context", "Bake, and leave the model as it is in short contexts.", ""
        ),
    ] = False
    replace_scaling: Annotated[
        bool,
        _option("--replace-scaling", "Drop the file's own scaling, even if it was trained so.", ""),
    ] = False

    def request(self) -> ScalingRequest:
        """The request these options make: the model as it stands where they say no scheme."""
        from ggufrope.errors import RequestError
        from ggufrope.patching.request import SCHEMES, ScalingRequest

        if self.scaling is not None and self.scaling not in SCHEMES:
            raise RequestError(f"--scaling {self.scaling}: expected one of {', '.join(SCHEMES)}")
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        renamed = {
            "scaling": said.pop("scaling") or "file",
            "target_context": said.pop("target_ctx"),
            "original_context": said.pop("orig_ctx"),
        }
        for name in ("long_factors", "short_factors", "from_config"):
            renamed[name] = None if said[name] is None else str(said[name])
        return ScalingRequest(**(said | renamed))
