"""Opened models: one model, loaded, and contexts of it under any scaling of a run.

Worker processes import `open_model` by name, as in "package.module:function", because functions do
not travel between processes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

from ggufrope.backends.runtimes import LlamaBackend
from ggufrope.backends.scaled import ScaledModel
from ggufrope.backends.served import ServedModel, open_server
from ggufrope.backends.settings import RuntimeSettings
from ggufrope.errors import RequestError
from ggufrope.lm import LanguageModel, OpenContext

if TYPE_CHECKING:
    from ggufrope.container.ggml import KvTypes
    from ggufrope.patching.request import ScalingRequest

OPENER = f"{__name__}:open_model"
"""How worker processes open models with llama.cpp."""


class OpenedModel(Protocol):
    """One model, loaded; contexts of it under any scaling."""

    @property
    def model(self) -> LanguageModel:
        """The model as it stands."""
        ...

    @property
    def details(self) -> dict[str, str]:
        """What a report says of how it runs: versions, devices, layers offloaded."""
        ...

    def contexts(
        self, request: ScalingRequest, kv: KvTypes, *, largest: int, nudged: bool = False
    ) -> OpenContext:
        """Return a function that opens contexts of this model under a scaling, by their tokens.

        `largest` is the longest context of the run in tokens, which the factor follows from where
        the request has none. With `nudged` the RoPE base differs in its last bits. Raises
        RequestError where the scaling makes no sense on this model.
        """
        ...

    def close(self) -> None: ...


OpenModel: TypeAlias = Callable[[Path, RuntimeSettings], OpenedModel]


def open_model(path: Path, settings: RuntimeSettings) -> OpenedModel:
    """Open a model file with llama.cpp, or the model of that name at the server of the settings.

    Raises FileError, ServerError.
    """
    if settings.server is not None:
        return ServedModel(open_server(settings, path.as_posix()))
    return ScaledModel(path, LlamaBackend(settings=settings))


def opener(name: str) -> OpenModel:
    """Return the opener called "package.module:function". Raises RequestError without one."""
    module, _, function = name.partition(":")
    try:
        return cast("OpenModel", getattr(import_module(module), function))
    except (ImportError, AttributeError, ValueError) as error:
        raise RequestError(
            f"no opener {name!r}: expected package.module:function ({error})"
        ) from error
