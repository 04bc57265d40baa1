"""One loaded model that rotates by one scheme after another: thousands of them, in a search.

Any scheme is factors where the architecture loads them (`FactorRotator`), else run-time parameters
(`ParameterRotator`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol

from ggufrope.backends.runtimes import Backend, ModelT
from ggufrope.backends.scaled import spare_cells
from ggufrope.errors import RequestError
from ggufrope.lm import Branch, LanguageModel, OpenContext
from ggufrope.patching.overlay import factor_file
from ggufrope.rope.architectures import architecture
from ggufrope.rope.effective import RopeOverrides
from ggufrope.search.schemes import Scheme, exact_parameters, parameters

if TYPE_CHECKING:
    from pathlib import Path

    from ggufrope.container.ggml import KvTypes
    from ggufrope.patching.inspection import StoredModel
    from ggufrope.patching.overlay import FactorFile
    from ggufrope.patching.rotation import Rotation
    from ggufrope.rope.frequencies import Floats
    from ggufrope.rope.metadata import RopeMetadata

_PROBE_TEXT = "One and two and three and four and five and six and seven. " * 4
_PROBE_CONTEXT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """The model under one scheme, until its rotator is given another."""

    model: LanguageModel
    open_context: OpenContext


class Rotator(Protocol):
    """One model in memory that rotates by one scheme after another.

    `updates_in_place` is whether that needs no loading.
    """

    @property
    def updates_in_place(self) -> bool: ...

    def rotate(self, scheme: Scheme) -> Rotated:
        """Return the model rotating by `scheme`. What was returned before is no longer valid."""
        ...

    def close(self) -> None: ...


def open_rotator(
    model: StoredModel,
    rotation: Rotation,
    backend: Backend[ModelT],
    folder: Path,
    *,
    kv: KvTypes,
) -> FactorRotator[ModelT] | ParameterRotator[ModelT]:
    """Return the rotator for a model's architecture; working files go to `folder`.

    Raises StorageError where the folder has no room, BackendError where the model does not load.
    """
    backend = backend.fitted(model.path, rotation.target_context)
    if architecture(model.metadata.architecture).loads_factors:
        return FactorRotator(factor_file(model, folder), model, rotation, backend, kv=kv)
    return ParameterRotator(model, backend, kv=kv)


class FactorRotator(Generic[ModelT]):
    """Any scheme, as factors and an attention factor.

    Factors change in an overlay of a few hundred bytes. Where the loaded model is mapped from it,
    it sees the change at once, which is measured before it is relied on. Elsewhere (a GPU has
    copies of its own) other factors load the model again, and a scheme that context parameters say
    exactly is said by them.
    """

    def __init__(
        self,
        file: FactorFile,
        model: StoredModel,
        rotation: Rotation,
        backend: Backend[ModelT],
        *,
        kv: KvTypes,
    ) -> None:
        self._file = file
        self._rotation = rotation
        self._backend = backend
        self._kv = kv
        self._metadata = model.metadata
        self._model: ModelT | None = None
        self._written: Floats = ()
        try:
            self._updates_in_place = self._sees_changes()
        except BaseException:
            self.close()
            raise

    @property
    def updates_in_place(self) -> bool:
        """Whether the loaded model sees a change of its factors."""
        return self._updates_in_place

    def rotate(self, scheme: Scheme) -> Rotated:
        """Return the model under `scheme`."""
        found = None
        if not self._updates_in_place:
            found = exact_parameters(scheme, self._rotation, self._metadata)
        if found is not None and found.attn_factor is None:
            self._set(self._native)
            return self._rotated(found.rope)
        self._set(scheme.absolute_factors(self._rotation))
        return self._rotated(self._factors_alone(scheme.magnitude(self._rotation)))

    def close(self) -> None:
        """Free the model and remove the working files."""
        if self._model is not None:
            self._model.close()
            self._model = None
        self._file.remove()

    @property
    def _native(self) -> Floats:
        return self._rotation.native or (1.0,) * self._rotation.pairs

    def _set(self, factors: Floats) -> None:
        """Write factors, and load the model again where it would not see them."""
        if factors != self._written:
            self._file.write(factors)
            self._written = factors
            if not self._updates_in_place:
                self._reload()

    def _factors_alone(self, magnitude: float) -> RopeOverrides:
        """Neither the file's scaling nor its attention factor acts: the scheme is all there is."""
        return RopeOverrides(
            scaling_type="none",
            yarn_ext_factor=0.0,
            yarn_attn_factor=magnitude / (self._metadata.attn_factor or 1.0),
        )

    def _rotated(self, rope: RopeOverrides) -> Rotated:
        if self._model is None:
            raise RequestError("the rotator was closed")
        return _rotated(self._backend, self._model, self._metadata, self._kv, rope)

    def _reload(self) -> None:
        if self._model is not None:
            self._model.close()
            self._model = None
        self._model = self._backend.load(self._file.path, self._file.kv_overrides)

    def _sees_changes(self) -> bool:
        """Whether factors written under a loaded model act as they do after loading it anew."""
        self._file.write(self._native)
        self._reload()
        before = self._measure()
        self._written = tuple(2 * own for own in self._native)
        self._file.write(self._written)
        at_once = self._measure()
        self._reload()
        return before != at_once == self._measure()

    def _measure(self) -> tuple[float, ...]:
        rotated = self._rotated(self._factors_alone(1.0))
        tokens = rotated.model.tokenize(_PROBE_TEXT, beginning=True)[: _PROBE_CONTEXT // 4]
        context = rotated.open_context(_PROBE_CONTEXT)
        try:
            half = len(tokens) // 2
            context.extend(tokens[:half])
            branch = Branch(prompt=(tokens[half],), answers=(tuple(tokens[half + 1 :]),))
            ((score,),) = context.score([branch])
        finally:
            context.close()
        return score.log_probabilities


class ParameterRotator(Generic[ModelT]):
    """Schemes that are run-time parameters: for architectures that load no factors.

    Another attention factor than YaRN's own is metadata, and loads the model again.
    """

    updates_in_place = True

    def __init__(self, model: StoredModel, backend: Backend[ModelT], *, kv: KvTypes) -> None:
        self._path = model.path
        self._metadata = model.metadata
        self._backend = backend
        self._kv = kv
        self._attention: float | None = None
        self._model: ModelT | None = None

    def rotate(self, scheme: Scheme) -> Rotated:
        """Return the model under the run-time parameters of `scheme`."""
        found = parameters(scheme, self._metadata)
        model = self._with_attention(found.attn_factor)
        return _rotated(self._backend, model, self._metadata, self._kv, found.rope)

    def close(self) -> None:
        """Free the model."""
        if self._model is not None:
            self._model.close()
            self._model = None

    def _with_attention(self, factor: float | None) -> ModelT:
        if self._model is None or factor != self._attention:
            self.close()
            key = self._metadata.key("attn_factor")
            self._model = self._backend.load(self._path, {} if factor is None else {key: factor})
            self._attention = factor
        return self._model


def _rotated(
    backend: Backend[ModelT],
    model: ModelT,
    metadata: RopeMetadata,
    kv: KvTypes,
    rope: RopeOverrides,
) -> Rotated:
    return Rotated(
        model=model,
        open_context=lambda n_ctx: backend.open_context(
            model, n_ctx, kv=kv, rope=rope, spare=spare_cells(metadata, n_ctx)
        ),
    )
