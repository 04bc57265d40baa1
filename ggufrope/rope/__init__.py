"""The mathematics and the meaning of RoPE settings: pure, without files or runtime.

What reading and predicting take is here. Writing has modules of its own: `expression`, `bake`,
`trial`, `factors`, `huggingface`, `export`.
"""

from ggufrope.rope.architectures import Architecture, architecture, architectures, source
from ggufrope.rope.effective import (
    EffectiveRope,
    EffectiveValue,
    LayerGroup,
    RopeOverrides,
)
from ggufrope.rope.frequencies import Frequencies, frequencies
from ggufrope.rope.lint import Finding, lint
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.metadata import FactorTensor, RopeMetadata, read_metadata
from ggufrope.rope.scaling import (
    DynamicNtk,
    FrequencyFactors,
    Linear,
    Llama3,
    LongRope,
    NtkAware,
    NtkByParts,
    Proportional,
    RopeScaling,
    Unscaled,
    Yarn,
)

__all__ = [
    "Architecture",
    "DynamicNtk",
    "EffectiveRope",
    "EffectiveValue",
    "FactorTensor",
    "Finding",
    "Frequencies",
    "FrequencyFactors",
    "LayerGroup",
    "Linear",
    "Llama3",
    "LongRope",
    "NtkAware",
    "NtkByParts",
    "Proportional",
    "RopeMetadata",
    "RopeOverrides",
    "RopeScaling",
    "Unscaled",
    "Yarn",
    "architecture",
    "architectures",
    "effective",
    "frequencies",
    "lint",
    "read_metadata",
    "source",
]
