"""The RoPE section of a Hugging Face config.json, as a model of that architecture has it.

A section replaces the whole of what the target's config has, so it is complete: nested by layer
type where the model's class in transformers (5.24) has it so, with the rotated share of a head, the
sections of multimodal RoPE and the slope of an attention temperature. Each part is compared with
the predicted rotation; where no scheme with a name gives it, the frequencies themselves are written
as LongRoPE factors, which every class takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ggufrope.errors import FileError, RequestError
from ggufrope.rope.architectures import architecture
from ggufrope.rope.encode import STILL
from ggufrope.rope.frequencies import (
    frequencies,
    ntk_base,
    plain_frequencies,
    yarn_magnitude,
    yarn_mscale,
)
from ggufrope.rope.huggingface import to_config
from ggufrope.rope.llamacpp import effective, number
from ggufrope.rope.overrides import recognize
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

if TYPE_CHECKING:
    from ggufrope.rope.effective import EffectiveRope, LayerGroup, RopeOverrides
    from ggufrope.rope.metadata import RopeMetadata

_BY_ATTENTION = {"global": "full_attention", "sliding-window": "sliding_attention"}
NESTED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "deepseek4": {"global": "compress", "sliding-window": "main"},
        "dots3note": {"global": "indexed_attention", "sliding-window": "sliding_attention"},
        **dict.fromkeys(
            (
                "gemma-embedding",
                "gemma3",
                "gemma3n",
                "gemma4",
                "laguna",
                "mellum",
                "mimo2",
                "modern-bert",
                "olmo2",
                "step35",
            ),
            _BY_ATTENTION,
        ),
    }
)
"""Architectures whose class in transformers has a section per layer type (in olmo2, which is OLMo 3
too, where layers slide): the name of the section of each group of layers."""

COMPOSITE = frozenset({"gemma3n", "gemma4", "llama4", "mistral3", "step35"})
"""Architectures whose published configs describe the language model under text_config; those of
multimodal RoPE do too, and Gemma 3 from 4B on."""

_PHI = ("phi3", "phimoe")
"""Architectures whose class in transformers reads the original context beside the section."""

_GEMMA3_TEXT_LAYERS = (18, 26)
"""The layer counts of the Gemma 3 models that have no vision part."""

_EQUAL = 1e-6
"""Relative; what a float32 keeps of a factor."""
_DIGITS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What to put into a config.json, and what that leaves out.

    `parameters` is the value of rope_parameters. `context_length` is max_position_embeddings as
    transformers needs it. `nested` is whether the language model lies under text_config. `beside`
    has what some classes read beside the section.
    """

    parameters: Mapping[str, Any]
    context_length: int
    nested: bool
    scaled: bool
    beside: Mapping[str, Any]
    lost: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def config(self, *, engine: bool = False) -> dict[str, Any]:
        """Return the fields to merge into the config; `engine` for vLLM and SGLang."""
        parameters = _for_engine(self.parameters) if engine else dict(self.parameters)
        fields: dict[str, Any] = {"rope_parameters": parameters}
        if not (engine and parameters.get("rope_type") in ("linear", "dynamic")):
            # vLLM and SGLang take it for the length before a factor of these two.
            fields = {"max_position_embeddings": self.context_length, **fields}
        fields |= self.beside
        return {"text_config": fields} if self.nested else fields


def config_section(
    metadata: RopeMetadata,
    *,
    context_tokens: int,
    scaling: RopeScaling | None = None,
    base: float | None = None,
    trusted: bool = False,
    overrides: RopeOverrides | None = None,
) -> Section:
    """Return the section for what llama.cpp does with a file that declares `metadata`.

    `scaling` is the scheme over `base`, where they are known; else it is read from the metadata.
    With `trusted` it holds for the global layers whatever the metadata say.
    `overrides` are context parameters that belong to it. Raises FileError where llama.cpp would not
    load the file, RequestError where no layer rotates.
    """
    found = effective(metadata, context_tokens=context_tokens, overrides=overrides)
    groups = {group.name: group for group in found.groups if group.inverse_frequencies}
    if not groups:
        raise RequestError("no layer of this model rotates: there are no settings to export")
    maker = _Maker(
        metadata=metadata,
        found=found,
        context_tokens=context_tokens,
        given=scaling,
        given_base=base,
        trusted=trusted,
    )
    made = {name: maker.parameters(group) for name, group in groups.items()}
    lost: list[str] = []
    labels = NESTED.get(metadata.architecture)
    if labels is not None and ("sliding-window" in groups or metadata.architecture != "olmo2"):
        parameters: dict[str, Any] = {labels[name]: made[name] for name in made}
    else:
        whole = "global" if "global" in groups else next(iter(groups))
        parameters = made[whole]
        lost += [
            f"{name} layers rotate otherwise than {whole} layers, and the config of "
            f"{metadata.architecture} has one section for all"
            for name in made
            if made[name] != parameters
        ]
    main = made.get("global") or next(iter(made.values()))
    nested = _is_composite(metadata, found)
    notes = [_TEXT_CONFIG] if nested else []
    if metadata.architecture == "gpt-oss" and main.get("rope_type") == "yarn":
        notes.append(
            "gpt-oss was trained with truncate false, which llama.cpp does not have: add it for "
            "the trained rotation instead of llama.cpp's"
        )
    if found.caveat:
        notes.append(f"{metadata.architecture}: {found.caveat}")
    dynamic = isinstance(scaling, DynamicNtk) and main.get("rope_type") == "dynamic"
    return Section(
        parameters=MappingProxyType(parameters),
        # Dynamic NTK starts at max_position_embeddings, and stretches from there by itself.
        context_length=scaling.original_context
        if dynamic and isinstance(scaling, DynamicNtk)
        else context_tokens,
        nested=nested,
        beside=_beside_section(metadata, main),
        scaled=main.get("rope_type") not in ("default", "proportional", "dynamic"),
        lost=tuple(lost),
        notes=tuple(notes),
    )


_TEXT_CONFIG = (
    "the fields lie under text_config, as published configs of this architecture have them; in a "
    "config of the language model alone they lie at the top"
)


def _beside_section(metadata: RopeMetadata, main: Mapping[str, Any]) -> Mapping[str, Any]:
    original = main.get("original_max_position_embeddings")
    if metadata.architecture not in _PHI or original is None:
        return {}
    return {"original_max_position_embeddings": original}


def _is_composite(metadata: RopeMetadata, found: EffectiveRope) -> bool:
    if metadata.architecture == "gemma3":
        return metadata.block_count not in _GEMMA3_TEXT_LAYERS
    return metadata.architecture in COMPOSITE or found.rope_type in ("mrope", "imrope")


def _for_engine(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with the attention factor as vLLM and SGLang read it too: beside YaRN's own
    for YaRN, as a pair for LongRoPE."""
    made = {
        name: _for_engine(value) if isinstance(value, Mapping) else value
        for name, value in parameters.items()
    }
    magnitude = parameters.get("attention_factor")
    if magnitude is None:
        return made
    if parameters["rope_type"] == "yarn":
        return {**made, "attn_factor": _short(magnitude / yarn_mscale(parameters["factor"]))}
    return {**made, "long_mscale": magnitude, "short_mscale": magnitude}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maker:
    """What the sections of a model's layers are made from."""

    metadata: RopeMetadata
    found: EffectiveRope
    context_tokens: int
    given: RopeScaling | None
    given_base: float | None
    trusted: bool

    def parameters(self, group: LayerGroup) -> dict[str, Any]:
        """Return rope_parameters for the layers of `group`, complete and with short numbers."""
        scaling, base = self._scheme(group)
        made = {**to_config(scaling, base=base), **self._beside(group, scaling)}
        return {name: _shortened(value) for name, value in made.items()}

    def _scheme(self, group: LayerGroup) -> tuple[RopeScaling, float]:
        """Return a scheme that transformers has and that rotates as `group` does, and its base."""
        for scaling, base in self._named(group):
            known, over = _in_transformers(scaling, base, group.n_rot, self._original())
            if self.metadata.architecture == "phi3" and not isinstance(known, Unscaled | LongRope):
                continue  # its class takes no other type
            trusted = self.trusted and group.name == "global" and scaling is self.given
            if trusted or self._gives(group, known, over):
                return known, over
        return self._as_factors(group)

    def _named(self, group: LayerGroup) -> list[tuple[RopeScaling, float]]:
        values = self.found.values
        if group.name == "sliding-window":
            base = number(values["freq_base_swa"])
            factor = 1 / number(values["freq_scale_swa"])
            plain = [(Unscaled(), base)] if factor <= 1 else [(Linear(factor=_near(factor)), base)]
            return [*plain, *self._whole()]
        return self._whole()

    def _whole(self) -> list[tuple[RopeScaling, float]]:
        """Return the schemes that may describe the global layers, the likeliest first."""
        base = number(self.found.values["freq_base"])
        schemes: list[tuple[RopeScaling, float]] = []
        if self.given is not None:
            schemes.append((self.given, base if self.given_base is None else self.given_base))
        try:
            found = recognize(self.metadata)
        except (RequestError, FileError):
            return schemes
        return [*schemes, (found.scaling, found.base)]

    def _gives(self, group: LayerGroup, scaling: RopeScaling, base: float) -> bool:
        """Return whether `scaling` rotates as `group` does, at the exported length."""
        try:
            expected = frequencies(
                scaling, n_rot=group.n_rot, base=base, context_tokens=self.context_tokens
            )
        except RequestError:
            return False
        if isinstance(scaling, Yarn) and scaling.ext_factor != 1:
            return False
        if isinstance(scaling, Yarn) and scaling is self.given and not scaling.truncate:
            return True  # transformers has it, and llama.cpp has not
        pairs = zip(expected.inverse_frequencies, group.inverse_frequencies, strict=True)
        alike = all(abs(a - b) <= _EQUAL * b or max(a, b) < 1 / STILL * 10 for a, b in pairs)
        return alike and abs(expected.magnitude / group.magnitude - 1) <= _EQUAL

    def _as_factors(self, group: LayerGroup) -> tuple[RopeScaling, float]:
        """Return the frequencies of `group` themselves, as factors over the base."""
        over = "freq_base_swa" if group.name == "sliding-window" else "freq_base"
        base = number(self.found.values[over])
        plain = plain_frequencies(group.n_rot, base)
        ratios = zip(plain, group.inverse_frequencies, strict=True)
        factors = tuple(theta / turned if turned > 0 else STILL for theta, turned in ratios)
        if (part := _proportional(factors, group.magnitude)) is not None:
            return part, base
        return _longrope(factors, group.magnitude, self._original()), base

    def _original(self) -> int:
        original = self.metadata.original_context or self.metadata.context_length
        return original or self.context_tokens

    def _beside(self, group: LayerGroup, scaling: RopeScaling) -> dict[str, Any]:
        """Return what the section has beside the scheme."""
        metadata, arch = self.metadata, architecture(self.metadata.architecture)
        made: dict[str, Any] = {}
        head = metadata.head_size
        if group.name == "sliding-window" and metadata.key_length_swa:
            head = metadata.key_length_swa
        latent = bool(metadata.kv_lora_rank)
        if head and group.n_rot < head and not latent and not isinstance(scaling, Proportional):
            made["partial_rotary_factor"] = _share(group.n_rot, head)
        sections = metadata.dimension_sections
        if self.found.rope_type in ("mrope", "imrope") and isinstance(sections, tuple):
            # A fourth section is unused in most models.
            made["mrope_section"] = list(sections[: 4 if sections[3:] > (0,) else 3])
            if self.found.rope_type == "imrope":
                made["mrope_interleaved"] = True
        multiplier = metadata.yarn_log_multiplier
        if latent and multiplier and isinstance(scaling, Yarn):
            # The softmax scale of multi-head latent attention (modeling_deepseek_v3.py).
            weight = multiplier * arch.log_multiplier_unit
            made |= {"mscale": weight, "mscale_all_dim": weight}
        if metadata.architecture == "phimoe" and not isinstance(scaling, Unscaled):
            made |= {"long_mscale": group.magnitude, "short_mscale": group.magnitude}
        if metadata.temperature_scale and arch.temperature == "original-context":
            made["llama_4_scaling_beta"] = metadata.temperature_scale
            made["original_max_position_embeddings"] = self._original()
        return made


def _in_transformers(
    scaling: RopeScaling, base: float, n_rot: int, original: int
) -> tuple[RopeScaling, float]:
    """Return a scheme as one that has a rope_type of its own, and the base of that."""
    match scaling:
        case NtkAware(factor=factor):
            return Unscaled(), ntk_base(base, factor, n_rot)
        case NtkByParts(beta_fast=fast, beta_slow=slow) if fast > slow:
            limits = {"high_freq_factor": fast, "low_freq_factor": slow}
            same = Llama3(
                factor=scaling.factor, original_context=scaling.original_context, **limits
            )
            return same, base
        case FrequencyFactors(factors=factors, attention_factor=magnitude):
            part = _proportional(factors, magnitude)
            return part or _longrope(factors, magnitude, original), base
        case Linear(factor=factor):
            return Linear(factor=_near(factor)), base
        case Yarn():
            return _usual_yarn(scaling), base
    return scaling, base


def _usual_yarn(scaling: Yarn) -> Yarn:
    """Return the same scheme, without the attention factor that it has anyway."""
    usual = yarn_mscale(scaling.factor)
    magnitude = yarn_magnitude(scaling)
    return Yarn(
        factor=_near(scaling.factor),
        original_context=scaling.original_context,
        beta_fast=scaling.beta_fast,
        beta_slow=scaling.beta_slow,
        ext_factor=scaling.ext_factor,
        attention_factor=None if abs(magnitude / usual - 1) <= _EQUAL else magnitude,
        truncate=scaling.truncate,
    )


def _longrope(factors: tuple[float, ...], magnitude: float, original: int) -> LongRope:
    """Return factors that hold at every length, as the rope type that takes some."""
    return LongRope(
        long_factors=factors,
        short_factors=factors,
        original_context=original,
        attention_factor=magnitude,
    )


def _proportional(factors: tuple[float, ...], magnitude: float) -> Proportional | None:
    """Return Gemma 4's scheme where the factors are those of pairs that turn, then of some that do
    not."""
    turning = sum(factor < math.sqrt(STILL) for factor in factors)
    if not 0 < turning < len(factors) or abs(magnitude - 1) > _EQUAL:
        return None
    first, *rest = factors[:turning]
    if first < 1 or any(abs(factor / first - 1) > _EQUAL for factor in rest):
        return None
    if any(factor < math.sqrt(STILL) for factor in factors[turning:]):
        return None
    return Proportional(fraction=_share(turning, len(factors)), factor=_near(first))


def _share(part: int, whole: int) -> float:
    """Return part / whole as a short number from which int(share * whole) gives `part`."""
    exact = part / whole
    found = next(
        (share for d in range(2, 10) if int((share := round(exact, d)) * whole) == part), None
    )
    return (part + 0.5) / whole if found is None else found


def _near(factor: float) -> float:
    """Return a factor without the noise of the reciprocal that it was stored as."""
    return _short(factor) if abs(_short(factor) / factor - 1) <= _EQUAL else factor


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _shortened(value: Any) -> Any:
    """Return a number, or each of a list, to the digits that a float32 has."""
    if isinstance(value, float):
        return _short(value)
    return [_shortened(item) for item in value] if isinstance(value, list) else value
