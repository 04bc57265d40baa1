"""A model file under the scaling requests of a run.

It follows them by context parameters where these say the scheme exactly, else by an overlay of keys
and factor tensors, else by a working copy. The candidates of a search have
`ggufrope.search.rotators`.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic

from ggufrope.backends.runtimes import SPARE_CELLS, UNKNOWN_CONTEXT, ModelT
from ggufrope.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ggufrope.backends.runtimes import Backend, OverrideValue
    from ggufrope.container.ggml import KvTypes
    from ggufrope.lm import LanguageContext, OpenContext
    from ggufrope.patching.request import ScalingRequest
    from ggufrope.rope.effective import RopeOverrides
    from ggufrope.rope.metadata import RopeMetadata


@dataclass(frozen=True, slots=True)
class _Loaded(Generic[ModelT]):
    """A model in memory, and what its file says after overrides."""

    model: ModelT
    metadata: RopeMetadata


class ScaledModel(Generic[ModelT]):
    """A model file under any scaling request; an `OpenedModel`.

    Requests share its weights where context parameters say them exactly. What lives in keys or
    tensors is loaded from an overlay of a few hundred bytes over the same file, or where the file's
    own keys or tensors would have to go, from a working copy. Overlays and copies are in a
    temporary folder in `working` (None: the system's), removed by `close`. Weights are loaded when
    they are first needed: "auto" layers depend on the longest context of the run.
    """

    def __init__(
        self, path: Path, backend: Backend[ModelT], *, working: Path | None = None
    ) -> None:
        """Read what the file declares. Raises FileError."""
        from ggufrope.patching.inspection import read_model

        self._stored = read_model(path)
        self._backend = backend
        self._fitted = False
        self._working = working
        self._cleanup = ExitStack()
        self._loaded: dict[ScalingRequest | None, _Loaded[ModelT]] = {}
        self._folder: Path | None = None

    @property
    def model(self) -> ModelT:
        """The model as it stands."""
        return self._as_it_stands().model

    @property
    def details(self) -> dict[str, str]:
        """What the backend says of how the model runs."""
        return self._backend.describe(self.model)

    def contexts(
        self, request: ScalingRequest, kv: KvTypes, *, largest: int, nudged: bool = False
    ) -> OpenContext:
        """Return a function that opens contexts under `request`; see `OpenedModel`."""
        from ggufrope.patching.compose import encode_request, patched
        from ggufrope.patching.request import resolve
        from ggufrope.patching.rotation import exact_overrides
        from ggufrope.rope.trained import trained_context

        self._fit(largest)
        if request.is_file:
            return self._opener(self._as_it_stands(), kv, lambda n_ctx: None, nudged=nudged)
        metadata = self._stored.metadata
        if request.target_context is None and request.factor is None:
            trained = trained_context(metadata)
            reached = largest if trained is None else trained.tokens
            request = replace(request, target_context=max(largest, reached))
        target, written = resolve(request, metadata), None
        with suppress(RequestError):  # no file can say it: context parameters may
            written = patched(metadata, encode_request(request, metadata)[1])

        def parameters(n_ctx: int) -> RopeOverrides | None:
            return exact_overrides(target, metadata, context_tokens=n_ctx, written=written)

        in_tensors = request.bake or request.keep_short_context
        if not in_tensors and parameters(largest) is not None:
            return self._opener(self._as_it_stands(), kv, parameters, nudged=nudged)
        return self._opener(self._written(request), kv, lambda n_ctx: None, nudged=nudged)

    def close(self) -> None:
        """Free the models and remove working files."""
        self._cleanup.close()
        self._loaded.clear()
        self._folder = None

    def _fit(self, context_tokens: int) -> None:
        if not self._fitted:
            self._backend = self._backend.fitted(self._stored.path, context_tokens)
            self._fitted = True

    def _as_it_stands(self) -> _Loaded[ModelT]:
        if None not in self._loaded:
            self._loaded[None] = self._load(self._stored.path, {}, self._stored.metadata)
        return self._loaded[None]

    def _written(self, request: ScalingRequest) -> _Loaded[ModelT]:
        """The model with the scheme of `request` written in: by an overlay, else into a copy."""
        if request not in self._loaded:
            self._loaded[request] = self._overlaid(request) or self._copied(request)
        return self._loaded[request]

    def _overlaid(self, request: ScalingRequest) -> _Loaded[ModelT] | None:
        from ggufrope.patching.compose import check_start, encode_request, patched
        from ggufrope.patching.overlay import overlay

        metadata = self._stored.metadata
        target, expression = encode_request(request, metadata)
        after = patched(metadata, expression)
        check_start(request, target, metadata, after)
        found = overlay(self._stored, expression, self._new_folder())
        return None if found is None else self._load(found.path, found.kv_overrides, after)

    def _copied(self, request: ScalingRequest) -> _Loaded[ModelT]:
        from ggufrope.patching.inspection import read_model
        from ggufrope.patching.plan import apply, plan_patch

        path = self._new_folder() / self._stored.path.name
        apply(plan_patch(self._stored.path, request, output=path))
        return self._load(path, {}, read_model(path).metadata)

    def _new_folder(self) -> Path:
        """A new folder for working files, in the one that goes with this model."""
        from ggufrope._files import storage, working_folder

        if self._folder is None:
            self._folder = self._cleanup.enter_context(working_folder(self._working))
        folder = self._folder / str(len(self._loaded))
        with storage("create", folder):
            folder.mkdir(exist_ok=True)
        return folder

    def _load(
        self, path: Path, kv_overrides: Mapping[str, OverrideValue], metadata: RopeMetadata
    ) -> _Loaded[ModelT]:
        self._fit(self._stored.metadata.context_length or UNKNOWN_CONTEXT)
        model = self._backend.load(path, kv_overrides)
        self._cleanup.callback(model.close)
        return _Loaded(model, metadata)

    def _opener(
        self,
        loaded: _Loaded[ModelT],
        kv: KvTypes,
        parameters: Callable[[int], RopeOverrides | None],
        *,
        nudged: bool,
    ) -> OpenContext:
        from ggufrope.rope import overrides
        from ggufrope.rope.effective import RopeOverrides

        def open_context(n_ctx: int) -> LanguageContext:
            rope = parameters(n_ctx) or RopeOverrides()
            return self._backend.open_context(
                loaded.model,
                n_ctx,
                kv=kv,
                rope=overrides.nudged(rope, loaded.metadata) if nudged else rope,
                spare=spare_cells(loaded.metadata, n_ctx),
            )

        return open_context


def spare_cells(metadata: RopeMetadata, n_ctx: int) -> int:
    """Return how many cells a context can have beyond `n_ctx` for questions.

    None where llama.cpp would then take the long factors of a LongRoPE file for its short ones, or
    where it is not known what it does.
    """
    from ggufrope.errors import FileError
    from ggufrope.rope.architectures import architecture
    from ggufrope.rope.llamacpp import allocated_context, choose_factors

    contexts = map(allocated_context, (n_ctx, n_ctx + SPARE_CELLS))
    try:
        arch = architecture(metadata.architecture)
        plain, wider = (choose_factors(metadata, arch, tokens)[0] for tokens in contexts)
    except FileError:
        return 0
    return SPARE_CELLS if plain is wider else 0
