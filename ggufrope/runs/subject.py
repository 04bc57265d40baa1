"""The model under test, as a run sees it: the only seam to a runtime.

`runs` measures whatever an opener returns. The command line's opener loads the file with
llama.cpp; tests pass one over the fake runtime. Worker processes import it by name, as in
"package.module:function", because functions do not travel between processes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

from ggufrope.errors import RequestError
from ggufrope.patching.request import ScalingRequest
from ggufrope.runs.plan import KvTypes, RuntimeSettings

if TYPE_CHECKING:
    from ggufrope.lm import LanguageModel, OpenContext


class Subject(Protocol):
    """One model, loaded."""

    @property
    def model(self) -> LanguageModel: ...

    @property
    def details(self) -> dict[str, str]:
        """What the report should say of how it runs: versions, devices, layers offloaded."""
        ...

    def contexts(self, trial: ScalingRequest, kv: KvTypes, *, largest: int) -> OpenContext:
        """How to open contexts of this model under a scaling and with those cache types.

        `largest` is the longest context of the run in tokens, which a trial's factor follows from
        where it has none. Raises RequestError where the scaling makes no sense on this model.
        """
        ...

    def close(self) -> None: ...


OpenSubject: TypeAlias = Callable[[Path, RuntimeSettings], Subject]


def opener(name: str) -> OpenSubject:
    """The opener called "package.module:function". Raises RequestError where there is none."""
    module, _, function = name.partition(":")
    try:
        return cast("OpenSubject", getattr(import_module(module), function))
    except (ImportError, AttributeError, ValueError) as error:
        raise RequestError(
            f"no opener {name!r}: expected package.module:function ({error})"
        ) from error
