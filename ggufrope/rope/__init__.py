"""The mathematics and the meaning of RoPE settings: pure, without files or runtime."""

from ggufrope.rope.architectures import Architecture, architecture, architectures, source
from ggufrope.rope.bake import Baked, bake
from ggufrope.rope.edits import Expression, Ignored
from ggufrope.rope.effective import (
    EffectiveRope,
    EffectiveValue,
    LayerGroup,
    RopeOverrides,
)
from ggufrope.rope.export import Export, export
from ggufrope.rope.expression import express
from ggufrope.rope.factors import FactorSet, format_factors, parse_factors
from ggufrope.rope.frequencies import Frequencies, frequencies
from ggufrope.rope.huggingface import ConfigRope, from_config, to_config
from ggufrope.rope.lint import Finding, lint
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.metadata import FactorTensor, RopeMetadata, read_metadata
from ggufrope.rope.recognition import Recognised, recognise
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
from ggufrope.rope.trial import Trial, command_flags, try_out

__all__ = [
    "Architecture",
    "Baked",
    "ConfigRope",
    "DynamicNtk",
    "EffectiveRope",
    "EffectiveValue",
    "Export",
    "Expression",
    "FactorSet",
    "FactorTensor",
    "Finding",
    "Frequencies",
    "FrequencyFactors",
    "Ignored",
    "LayerGroup",
    "Linear",
    "Llama3",
    "LongRope",
    "NtkAware",
    "NtkByParts",
    "Proportional",
    "Recognised",
    "RopeMetadata",
    "RopeOverrides",
    "RopeScaling",
    "Trial",
    "Unscaled",
    "Yarn",
    "architecture",
    "architectures",
    "bake",
    "command_flags",
    "effective",
    "export",
    "express",
    "format_factors",
    "frequencies",
    "from_config",
    "lint",
    "parse_factors",
    "read_metadata",
    "recognise",
    "source",
    "to_config",
    "try_out",
]
