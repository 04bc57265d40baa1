"""Which keys and tensors each llama.cpp architecture reads, and what its graph does with them.

`tools/architectures.py` generates the table, `architectures.json`, from the llama.cpp source of
one commit; `source()` names it. A newer runtime may differ.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ggufrope.errors import FileError
from ggufrope.rope.keys import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RopeType: TypeAlias = Literal["none", "norm", "neox", "mrope", "imrope"]
"""How dimensions pair: norm (2j, 2j+1), neox (j, j+n_rot/2); mrope and imrope pair as neox."""
Role: TypeAlias = Literal[
    "decoder", "encoder", "encoder-decoder", "draft", "diffusion", "vocoder", "projector"
]
"""What comes out: the next token (decoder), or something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingWindow:
    """Which layers of an architecture use a sliding window, and what RoPE it gives them.

    pattern: the period where the file declares none; None means that the file has to.
    dense_first: whether the global layer is the first of each period; otherwise it is the last.
    when: the files with such layers: all, those with a window, all but those with a window of 0, or
        those of 64 layers.
    base, scale: what these layers start from: the context's values, the file's own (which no
        runtime flag changes), or plain ones.
    reads_base: whether `rope.freq_base_swa` replaces the base.
    yarn: whether YaRN's blend and the attention factors apply to these layers.
    """

    pattern: int | None
    dense_first: bool = False
    when: Literal["always", "window", "unless-zero", "64-layers"] = "always"
    base: Literal["context", "file", "10000"]
    scale: Literal["context", "file", "1"]
    reads_base: bool = False
    yarn: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture as llama.cpp loads and runs it.

    role: what llama.cpp's graph of it does with tokens.
    rope: the rope type; with `mrope_by_sections`, mrope where the file has rope sections.
    full_head: whether it runs only if the rotary dimensions are the whole head.
    global_rot_divisor: its global layers rotate the declared dimensions divided by this.
    reads: RopeMetadata fields it reads in addition to those that every architecture reads.
    settings_act: whether its graph uses any setting; if not, it rotates with base 10000.
    magnitude: whether the attention factor of the keys acts: it may be cancelled by the graph, or
        undone by a norm after the rotation (in llama4 not for models of 128 experts).
    scores_by_factor: whether attention scores are multiplied by a function of the scaling factor,
        whatever the scaling type, as in deepseek2.cpp.
    temperature: where the floor of its attention temperature comes from, if it has one; "fixed" is
        8192 tokens, on layers that do not rotate.
    compressed: whether its layers of a compress ratio above 0 turn at a base of their own, and the
        others are plain sliding-window layers.
    beta_fast: its default of YaRN's beta_fast.
    log_multiplier_unit, mscale_pair: how yarn_log_multiplier becomes YaRN's mscales.
    tensors: the factor tensors it can load; with `tensors_by_type`, long and short only if the
        scaling type is longrope and rope_freqs only if it is not.
    factors_on: the layers whose rotation its graph divides by the factors.
    sliding: its sliding-window layers, if it has any.
    dense_rotate: whether its leading dense layers rotate although `no_rope` names them.
    no_rope: the layers it does not rotate: first or last of each `step` (without `step_always`,
        only where there are sliding layers), those that a pattern in the file names, or all, except
        in fine-tuned models or in models of 32 layers.
    recurrent: which layers have a recurrent state in place of attention.
    caveat: what a prediction of its rotation does not cover.
    """

    name: str
    rope: RopeType
    role: Role = "decoder"
    mrope_by_sections: bool = False
    full_head: bool = False
    global_rot_divisor: int = 1
    reads: frozenset[str] = frozenset()
    settings_act: bool = True
    magnitude: Literal["acts", "cancelled", "normalized", "normalized-unless-128-experts"] = "acts"
    scores_by_factor: bool = False
    temperature: Literal["none", "original-context", "temperature-length", "fixed"] = "none"
    compressed: bool = False
    beta_fast: float = 32.0
    log_multiplier_unit: float = 1.0
    mscale_pair: bool = False
    tensors: tuple[str, ...] = ()
    tensors_by_type: bool = False
    factors_on: Literal["all", "global", "none"] = "none"
    sliding: SlidingWindow | None = None
    no_rope: Literal[
        "none", "global", "last", "first", "pattern", "unless-finetuned", "unless-32-layers"
    ] = "none"
    dense_rotate: bool = False
    step: int = 0
    step_always: bool = False
    recurrent: Literal["none", "no-kv-heads", "interval", "all"] = "none"
    caveat: str | None = None

    @property
    def loads_factors(self) -> bool:
        """Whether a factor tensor in a file of this architecture has any effect."""
        return bool(self.tensors) and self.factors_on != "none"

    def loads(self, tensor: str, scaling_type: str) -> bool:
        """Return whether `tensor` loads in a file of `scaling_type`. Where it does not, llama.cpp
        refuses the file."""
        if tensor not in self.tensors:
            return False
        if not self.tensors_by_type:
            return True
        return (tensor == ROPE_FREQS) == (scaling_type != "longrope")

    @property
    def has_long_short_factors(self) -> bool:
        """Whether it chooses between long and short factors by the length of the context."""
        return self.loads_factors and {ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT} <= set(self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the table was generated from."""

    commit: str
    package: str


@cache
def architecture(name: str) -> Architecture:
    """Return the entry of `name` (`general.architecture`). Raises FileError where llama.cpp does
    not know it."""
    fields = _table()["architectures"].get(name)
    if fields is None:
        raise FileError(
            f"architecture {name!r} is unknown to llama.cpp {source().commit[:9]}, which this "
            "version of ggufrope describes: it would not load there"
        )
    return _entry(name, **fields)


def architectures() -> Mapping[str, Architecture]:
    """Return every architecture of the table, by name."""
    return {name: architecture(name) for name in _table()["architectures"]}


def source() -> Source:
    """Return the llama.cpp version that the table describes."""
    return Source(**_table()["source"])


@cache
def _table() -> Any:
    return json.loads(Path(__file__).with_name("architectures.json").read_text("utf-8"))


def _entry(
    name: str,
    *,
    sliding: dict[str, Any] | None = None,
    reads: Sequence[str] = (),
    tensors: Sequence[str] = (),
    **fields: Any,
) -> Architecture:
    return Architecture(
        name=name,
        reads=frozenset(reads),
        tensors=tuple(tensors),
        sliding=None if sliding is None else SlidingWindow(**sliding),
        **fields,
    )
