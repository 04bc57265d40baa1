"""What a model is for: whether it generates text, and whether llama.cpp keeps a K/V cache for it.

Embedding models, rerankers, encoders and diffusion models do not generate text token by token.
What measures recall or perplexity refuses them, by what the file says, before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.errors import RequestError
from ggufrope.rope.architectures import Role, architecture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ggufrope.rope.metadata import RopeMetadata

_ROLES: Mapping[Role, str] = {
    "encoder": "an encoder, which attends in both directions",
    "encoder-decoder": "an encoder-decoder model, whose prompt an encoder reads",
    "draft": "a draft model, which guesses the tokens of another model",
    "diffusion": "a diffusion model, which fills in all tokens at once",
    "vocoder": "a decoder of sound, not of text",
    "projector": "a projector of images or sound, not a language model",
    "classifier": "a decision model, which scores options",
}
_POOLING = {1: "mean", 2: "cls", 3: "last", 4: "rank"}
"""enum llama_pooling_type, include/llama.h; 0 is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """Whether a model generates text token by token, and whether it has a K/V cache.

    `reason` is what it is where it does not generate, as in "an embedding model (…)"; else "".
    """

    generates: bool
    keeps_cache: bool
    reason: str = ""


def require_generation(metadata: RopeMetadata, name: str) -> None:
    """Raise RequestError where the model called `name` generates no text to measure."""
    meant = purpose(metadata)
    if not meant.generates:
        raise RequestError(
            f"{name} does not generate text token by token, which is measured: it is "
            f"{meant.reason}; choose a generative model"
        )


def purpose(metadata: RopeMetadata) -> Purpose:
    """Return what the model is for, from its architecture and its keys.

    llama.cpp gives no cache to some architectures (`llama_model::create_memory`); the others keep
    one even where the file says that they attend in both directions or pool their outputs. A model
    of an architecture that the table does not have is taken for one that generates.
    """
    role = architecture(metadata.architecture).role
    if role != "decoder":
        cached = role in ("encoder-decoder", "draft")
        return Purpose(generates=False, keeps_cache=cached, reason=_ROLES[role])
    pooling = metadata.pooling_type or 0
    said = []
    if metadata.causal is False:
        said.append(f"{metadata.key('causal')} is false")
    if pooling:
        name = _POOLING.get(pooling)
        said.append(f"{metadata.key('pooling_type')} is {pooling}" + (f", {name}" if name else ""))
    if not said:
        return Purpose(generates=True, keeps_cache=True)
    kind = "a reranker" if _POOLING.get(pooling) == "rank" else "an embedding model"
    return Purpose(generates=False, keeps_cache=True, reason=f"{kind} ({'; '.join(said)})")
