"""A scheme tried without writing: as context parameters of a model already loaded.

Context parameters can say plain, linear, NTK-aware and most YaRN scaling of most files. Whether
they say a scheme exactly is not assumed but computed: the rotation predicted under them has to
equal the scheme's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ggufrope.errors import FileError, RequestError
from ggufrope.rope.architectures import architecture
from ggufrope.rope.effective import RopeOverrides
from ggufrope.rope.frequencies import frequencies
from ggufrope.rope.llamacpp import effective, file_base, number, rotary_dimensions
from ggufrope.rope.metadata import RopeMetadata
from ggufrope.rope.overrides import context_overrides

if TYPE_CHECKING:
    from ggufrope.patching.request import Target

TOLERANCE = 1e-5
"""Relative; llama.cpp computes in float32."""


def trial_overrides(
    target: Target, metadata: RopeMetadata, *, context_tokens: int
) -> RopeOverrides | None:
    """Context parameters under which a loaded model rotates as `target` says; None where there
    are none, because the scheme lives in tensors or the file's own settings would show through.
    """
    arch = architecture(metadata.architecture)
    n_rot = rotary_dimensions(metadata, arch)
    base = target.freq_base or number(file_base(metadata, arch))
    rebased = replace(metadata, freq_base=base)
    wanted = frequencies(target.scaling, n_rot=n_rot, base=base, context_tokens=context_tokens)
    try:
        overrides, _ = context_overrides(target.scaling, rebased, context_tokens=context_tokens)
        overrides = replace(overrides, freq_base=overrides.freq_base or base)
        predicted = effective(metadata, context_tokens=context_tokens, overrides=overrides)
    except (FileError, RequestError):
        return None
    exact = all(
        abs(group.magnitude / wanted.magnitude - 1) <= TOLERANCE
        and all(
            abs(found - theta) <= TOLERANCE * theta
            for found, theta in zip(
                group.inverse_frequencies, wanted.inverse_frequencies, strict=True
            )
        )
        for group in predicted.groups
        if group.name == "global"
    )
    return overrides if exact else None
