"""Edits of a file as values: keys and tensors to write, and what no file can say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufrope.container.edits import TypedValue

SCALING_FIELDS = (
    "scaling_type",
    "factor",
    "scale_linear",
    "original_context",
    "attn_factor",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
)
"""The fields that together say how positions are scaled: setting a scheme settles them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """A parameter of the wish that llama.cpp would not honour; `instead` says what does."""

    parameter: str
    value: float | int | bool
    reason: str
    instead: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expression:
    """What to put in the file: `keys` and `tensors` by name, None for those to take out.

    Tensors are float32 `[n_rot/2]`. `flags` are llama.cpp's command-line flags that give what the
    file cannot; `notes` are sentences on what else the change does.
    """

    keys: Mapping[str, TypedValue | None]
    tensors: Mapping[str, NDArray[np.float32] | None]
    ignored: tuple[Ignored, ...] = ()
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
