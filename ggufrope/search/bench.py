"""Where candidates are tried: one loaded model, made to rotate as each of them says.

Base, scale and YaRN's parameters are context parameters, so candidates made of these share one
model in memory. Factors are tensors: they change in a file of a few hundred bytes (`overlay`).
Where the loaded model is mapped from it, it sees the change at once, which is proved before it is
relied on; elsewhere (a GPU has copies of its own) the model is loaded again for each candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ggufrope.errors import RequestError
from ggufrope.lm import Branch, LanguageContext, LanguageModel, OpenContext
from ggufrope.rope.architectures import architecture
from ggufrope.rope.effective import RopeOverrides
from ggufrope.rope.llamacpp import yarn_file_magnitude
from ggufrope.rope.overrides import context_overrides
from ggufrope.rope.scaling import FrequencyFactors, RopeScaling, Yarn
from ggufrope.search.overlay import FactorFile, factor_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ggufrope.patching.inspection import StoredModel
    from ggufrope.search.spaces import Rotation

_PROOF_TEXT = "One and two and three and four and five and six and seven. " * 4
_PROOF_CONTEXT = 256


class LoadedModel(LanguageModel, Protocol):
    """A model that can be let go of."""

    def close(self) -> None: ...


ModelT = TypeVar("ModelT", bound=LoadedModel)


class Runtime(Protocol[ModelT]):
    """Loads models and opens contexts; closes over devices, cache types and threads."""

    def load(self, path: Path, kv_overrides: Mapping[str, int | float | bool | str]) -> ModelT: ...

    def open_context(self, model: ModelT, n_ctx: int, rope: RopeOverrides) -> LanguageContext: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model under one candidate, until the bench is asked for another."""

    model: LanguageModel
    open_context: OpenContext


class Bench(Protocol):
    """The seam between candidates and a runtime."""

    def under(self, scaling: RopeScaling) -> Subject:
        """The model rotating by `scaling`. What was handed out before is no longer valid."""
        ...

    def close(self) -> None: ...


def open_bench(
    model: StoredModel, rotation: Rotation, runtime: Runtime[ModelT], folder: Path
) -> FactorBench[ModelT] | OverrideBench[ModelT]:
    """The bench for a model's architecture; working files go to `folder`.

    Raises StorageError where the folder has no room, BackendError where the model does not load.
    """
    if architecture(model.metadata.architecture).loads_factors:
        return FactorBench(factor_file(model, folder), model, rotation, runtime)
    return OverrideBench(model, rotation, runtime)


class FactorBench(Generic[ModelT]):
    """Any scheme, as factors and a magnitude. `live` is whether the loaded model sees a change of
    its file; where it does not, every candidate loads it again."""

    def __init__(
        self, file: FactorFile, model: StoredModel, rotation: Rotation, runtime: Runtime[ModelT]
    ) -> None:
        self._file = file
        self._rotation = rotation
        self._runtime = runtime
        self._file_attention = model.metadata.attn_factor or 1.0
        self._model: ModelT | None = None
        try:
            self.live = self._sees_changes()
        except BaseException:
            self.close()
            raise

    def under(self, scaling: RopeScaling) -> Subject:
        self._file.write(self._rotation.absolute_factors(scaling))
        if not self.live or self._model is None:
            self._reload()
        return self._subject(self._rotation.magnitude(scaling))

    def close(self) -> None:
        """Free the model and remove the working files."""
        if self._model is not None:
            self._model.close()
            self._model = None
        self._file.remove()

    def _subject(self, magnitude: float) -> Subject:
        model = self._model
        if model is None:
            raise RequestError("the bench was closed")
        # Neither the file's scaling nor its attention factor: the candidate is all there is.
        rope = RopeOverrides(
            scaling_type="none",
            yarn_ext_factor=0.0,
            yarn_attn_factor=magnitude / self._file_attention,
        )
        return Subject(
            model=model,
            open_context=lambda n_ctx: self._runtime.open_context(model, n_ctx, rope),
        )

    def _reload(self) -> None:
        if self._model is not None:
            self._model.close()
            self._model = None
        self._model = self._runtime.load(self._file.path, self._file.kv_overrides)

    def _sees_changes(self) -> bool:
        """Whether factors written under a loaded model act as they do after loading it anew."""
        pairs = self._rotation.pairs
        plain = FrequencyFactors(factors=(1.0,) * pairs)
        halved = FrequencyFactors(factors=(2.0,) * pairs)
        self._file.write(self._rotation.absolute_factors(plain))
        self._reload()
        before = self._measure()
        self._file.write(self._rotation.absolute_factors(halved))
        at_once = self._measure()
        self._reload()
        return before != at_once == self._measure()

    def _measure(self) -> tuple[float, ...]:
        subject = self._subject(1.0)
        tokens = subject.model.tokenize(_PROOF_TEXT, beginning=True)[: _PROOF_CONTEXT // 4]
        context = subject.open_context(_PROOF_CONTEXT)
        try:
            half = len(tokens) // 2
            context.extend(tokens[:half])
            branch = Branch(prompt=(tokens[half],), answers=(tuple(tokens[half + 1 :]),))
            ((score,),) = context.score([branch])
        finally:
            context.close()
        return score.log_probabilities


class OverrideBench(Generic[ModelT]):
    """Schemes that are context parameters: for architectures that load no factors.

    The attention factor of YaRN is fixed by its scale there; another one is metadata, and loads
    the model again.
    """

    live = True

    def __init__(self, model: StoredModel, rotation: Rotation, runtime: Runtime[ModelT]) -> None:
        self._path = model.path
        self._metadata = model.metadata
        self._rotation = rotation
        self._runtime = runtime
        self._attention: float | None = None
        self._model: ModelT | None = None

    def under(self, scaling: RopeScaling) -> Subject:
        overrides, _ = context_overrides(scaling, self._metadata)
        implied = 1.0
        if isinstance(scaling, Yarn):
            arch = architecture(self._metadata.architecture)
            implied = yarn_file_magnitude(self._metadata, arch, scaling.factor)
        model = self._with_attention(self._rotation.magnitude(scaling) / implied)
        return Subject(
            model=model,
            open_context=lambda n_ctx: self._runtime.open_context(model, n_ctx, overrides),
        )

    def close(self) -> None:
        """Free the model."""
        if self._model is not None:
            self._model.close()
            self._model = None

    def _with_attention(self, factor: float) -> ModelT:
        factor = round(factor, 6)
        if self._model is None or factor != self._attention:
            self.close()
            key = self._metadata.key("attn_factor")
            self._model = self._runtime.load(self._path, {key: factor})
            self._attention = factor
        return self._model
