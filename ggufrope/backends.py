"""Opens models, and makes them rotate as asked: the one seam to a runtime.

A `Backend` loads files and opens contexts: `LlamaBackend` with llama.cpp, `FakeBackend` with the
public fake. Runs, searches and scripts all use one. Above it this is the one place that makes a
model rotate as a scheme says:

- `ScaledModel` follows scaling requests, for runs: by context parameters where these say the scheme
  exactly, else by an overlay of keys and factor tensors, else by a working copy;
- a `Rotator` follows the candidates of a search, thousands of them, on one loaded model.

Worker processes import `open_model` by name, as in "package.module:function", because functions do
not travel between processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeAlias, TypeVar, cast

from ggufrope.errors import RequestError
from ggufrope.lm import Branch, LanguageContext, LanguageModel, OpenContext

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

    from ggufrope.container.ggml import KvTypes
    from ggufrope.patching.inspection import StoredModel
    from ggufrope.patching.overlay import FactorFile
    from ggufrope.patching.request import ScalingRequest
    from ggufrope.patching.rotation import Rotation
    from ggufrope.rope.effective import RopeOverrides
    from ggufrope.rope.metadata import RopeMetadata
    from ggufrope.rope.scaling import RopeScaling
    from ggufrope.runtime.context import Context
    from ggufrope.runtime.fake import FakeContext, FakeModel
    from ggufrope.runtime.model import Model

OverrideValue: TypeAlias = int | float | bool | str

OPENER = f"{__name__}:open_model"
"""How worker processes open models with llama.cpp."""

_UNKNOWN_CONTEXT = 4096
_SPARE = 512
"""Cells for about eight questions with their distractors."""
_PROBE_TEXT = "One and two and three and four and five and six and seven. " * 4
_PROBE_CONTEXT = 256


# A runtime: what loads files and opens contexts. ------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSettings:
    """How models are loaded and evaluated. What is None is left to the runtime."""

    llama_lib: str | None = field(
        default=None,
        metadata={"help": "folder of another build of llama.cpp's libraries"},
    )
    gpu_layers: Literal["all", "auto"] | int = "all"
    devices: tuple[str, ...] = field(
        default=(),
        metadata={"help": "CUDA devices, one worker for each; none: one for all"},
    )
    main_gpu: int | None = None
    tensor_split: tuple[float, ...] = ()
    flash_attention: bool | None = None
    threads: int | None = None
    batch_tokens: int | None = None
    micro_batch_tokens: int | None = None


class LoadedModel(LanguageModel, Protocol):
    """A model whose memory can be freed."""

    def close(self) -> None: ...


ModelT = TypeVar("ModelT", bound=LoadedModel)


class Backend(Protocol[ModelT]):
    """Loads models and opens contexts of them."""

    def require(self) -> None:
        """Raise MissingDependencyError where the runtime is not installed."""
        ...

    def fitted(self, path: Path, context_tokens: int) -> Self:
        """Return this backend with a definite number of layers on the GPU for the model at `path`
        with a context of that length."""
        ...

    def load(self, path: Path, kv_overrides: Mapping[str, OverrideValue]) -> ModelT:
        """Load a file; `kv_overrides` replaces metadata for this load. Raises BackendError."""
        ...

    def open_context(
        self, model: ModelT, n_ctx: int, *, kv: KvTypes, rope: RopeOverrides, spare: int
    ) -> LanguageContext:
        """Open a context of `n_ctx` tokens and `spare` further cells for questions."""
        ...

    def versions(self) -> dict[str, str]:
        """Return what the runtime is, as records have it."""
        ...

    def describe(self, model: ModelT) -> dict[str, str]:
        """Return what a report says of how `model` runs: versions, devices, layers offloaded."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaBackend:
    """Models in llama.cpp, by llama-cpp-python."""

    settings: RuntimeSettings = RuntimeSettings()

    def require(self) -> None:
        """Raise MissingDependencyError where llama-cpp-python is not installed, or where the build
        that the settings name cannot be used."""
        from ggufrope.runtime import library

        self._use_library()
        library.load()

    def _use_library(self) -> None:
        from ggufrope.runtime.engine import use_llama

        use_llama(self.settings.llama_lib)

    def fitted(self, path: Path, context_tokens: int) -> LlamaBackend:
        """Return this backend with "auto" layers settled: as many as leave room on the GPUs for an
        f16 cache of that many tokens."""
        if self.settings.gpu_layers != "auto":
            return self
        from ggufrope.runtime.loading import LoadOptions
        from ggufrope.runtime.placement import fitting_layers
        from ggufrope.runtime.settings import ContextSettings

        self._use_library()
        options = LoadOptions(
            main_gpu=self.settings.main_gpu, tensor_split=self.settings.tensor_split
        )
        context = ContextSettings(n_ctx=context_tokens, spare=_SPARE)
        layers = fitting_layers(path, context, options)
        return LlamaBackend(settings=replace(self.settings, gpu_layers=layers))

    def load(self, path: Path, kv_overrides: Mapping[str, OverrideValue]) -> Model:
        """Load a file. Raises LoadError, InsufficientMemoryError, MissingDependencyError, and
        RequestError where devices are named and this process has none."""
        from ggufrope.runtime.model import Model

        self._use_library()
        self._require_devices()
        if self.settings.gpu_layers == "auto":
            return self.fitted(path, _UNKNOWN_CONTEXT).load(path, kv_overrides)
        return Model.open(
            path,
            kv_overrides=kv_overrides,
            gpu_layers=self.settings.gpu_layers,
            main_gpu=self.settings.main_gpu,
            tensor_split=self.settings.tensor_split,
        )

    def _require_devices(self) -> None:
        """Refuse to run on the CPU what was meant for devices."""
        from ggufrope.runtime import library

        if not self.settings.devices or any(d.kind == "gpu" for d in library.devices()):
            return
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ", ".join(self.settings.devices))
        why = "there is none of that number" if library.can_offload() else "this build has no CUDA"
        raise RequestError(f"`devices` {visible}: {why}; `ggufrope doctor` lists the devices")

    def open_context(
        self, model: Model, n_ctx: int, *, kv: KvTypes, rope: RopeOverrides, spare: int
    ) -> Context:
        """Open a context. Raises InsufficientMemoryError, UnsupportedCacheError, RequestError."""
        from ggufrope.runtime.context import Context
        from ggufrope.runtime.settings import ContextSettings

        settings = ContextSettings(
            n_ctx=n_ctx,
            spare=spare,
            type_k=kv.k,
            type_v=kv.v,
            flash_attention=self.settings.flash_attention,
            rope=rope,
            n_batch=self.settings.batch_tokens,
            n_ubatch=self.settings.micro_batch_tokens,
            n_threads=self.settings.threads,
        )
        return Context(model, settings)

    def versions(self) -> dict[str, str]:
        """Return the versions of llama.cpp and what tells its build apart."""
        from ggufrope.runtime import library

        self._use_library()
        versions = library.versions()
        return {
            "llama-cpp-python": versions.llama_cpp_python,
            "llama.cpp": versions.shown,
            "libllama": f"{versions.library}, SHA-256 {versions.library_sha256[:16]}",
        }

    def describe(self, model: Model) -> dict[str, str]:
        """Return versions, devices with their memory, and where the layers really went."""
        from ggufrope._format import byte_size
        from ggufrope.runtime import library

        placement = model.placement
        known = {
            **self.versions(),
            "system": library.versions().system_info,
            "layers on GPU": f"{placement.layers_on_gpu} of {placement.layers}",
        }
        weights = {buffer.device: buffer.size_bytes for buffer in placement.buffers}
        for device in library.devices():
            if device.kind in ("gpu", "igpu"):
                known[device.name] = (
                    f"{device.description}, {byte_size(device.memory_total)}, "
                    f"{byte_size(weights.get(device.name, 0))} of it weights, "
                    f"{byte_size(device.memory_free)} free with the model loaded"
                )
        return known


class FakeBackend:
    """The public fake, for tests of whatever measures models: no weights and no llama.cpp.

    `make_model` makes the fake of a file. It does not rotate: every scaling is the same to it.
    """

    def __init__(self, make_model: Callable[[Path], FakeModel] | None = None) -> None:
        self._make_model = make_model

    def require(self) -> None:
        """Do nothing: the fake is always there."""

    def fitted(self, path: Path, context_tokens: int) -> Self:
        """Return the backend itself: the fake has no GPU."""
        return self

    def load(self, path: Path, kv_overrides: Mapping[str, OverrideValue]) -> FakeModel:
        """Return a new fake for `path`."""
        from ggufrope.runtime.fake import FakeModel

        return FakeModel() if self._make_model is None else self._make_model(path)

    def open_context(
        self, model: FakeModel, n_ctx: int, *, kv: KvTypes, rope: RopeOverrides, spare: int
    ) -> FakeContext:
        """Open a context of the fake."""
        from ggufrope.runtime.fake import FakeContext

        return FakeContext(model, n_ctx=n_ctx + spare)

    def versions(self) -> dict[str, str]:
        """Return that it is the fake."""
        return {"llama.cpp": "none: the fake runtime"}

    def describe(self, model: FakeModel) -> dict[str, str]:
        """Return that it is the fake."""
        return self.versions()


# A model under the scalings of a run. -----------------------------------------------------------


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

    def contexts(self, request: ScalingRequest, kv: KvTypes, *, largest: int) -> OpenContext:
        """Return a function that opens contexts of this model under a scaling, by their tokens.

        `largest` is the longest context of the run in tokens, which the factor follows from where
        the request has none. Raises RequestError where the scaling makes no sense on this model.
        """
        ...

    def close(self) -> None: ...


OpenModel: TypeAlias = Callable[[Path, RuntimeSettings], OpenedModel]


def open_model(path: Path, settings: RuntimeSettings) -> ScaledModel[Model]:
    """Open a model file with llama.cpp. Raises FileError."""
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

    def contexts(self, request: ScalingRequest, kv: KvTypes, *, largest: int) -> OpenContext:
        """Return a function that opens contexts under `request`; see `OpenedModel`."""
        from ggufrope.patching.compose import encode_request, patched
        from ggufrope.patching.request import resolve
        from ggufrope.patching.rotation import exact_overrides
        from ggufrope.rope.trained import trained_context

        self._fit(largest)
        if request.is_file:
            return self._opener(self._as_it_stands(), kv, lambda n_ctx: None)
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
            return self._opener(self._as_it_stands(), kv, parameters)
        return self._opener(self._written(request), kv, lambda n_ctx: None)

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
        self._fit(self._stored.metadata.context_length or _UNKNOWN_CONTEXT)
        model = self._backend.load(path, kv_overrides)
        self._cleanup.callback(model.close)
        return _Loaded(model, metadata)

    def _opener(
        self,
        loaded: _Loaded[ModelT],
        kv: KvTypes,
        parameters: Callable[[int], RopeOverrides | None],
    ) -> OpenContext:
        from ggufrope.rope.effective import RopeOverrides

        def open_context(n_ctx: int) -> LanguageContext:
            return self._backend.open_context(
                loaded.model,
                n_ctx,
                kv=kv,
                rope=parameters(n_ctx) or RopeOverrides(),
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

    contexts = map(allocated_context, (n_ctx, n_ctx + _SPARE))
    try:
        arch = architecture(metadata.architecture)
        plain, wider = (choose_factors(metadata, arch, tokens)[0] for tokens in contexts)
    except FileError:
        return 0
    return _SPARE if plain is wider else 0


# One loaded model under the candidates of a search. ---------------------------------------------


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

    def rotate(self, scaling: RopeScaling) -> Rotated:
        """Return the model rotating by `scaling`. What was returned before is no longer valid."""
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
    from ggufrope.patching.overlay import factor_file
    from ggufrope.rope.architectures import architecture

    backend = backend.fitted(model.path, rotation.target_context)
    if architecture(model.metadata.architecture).loads_factors:
        return FactorRotator(factor_file(model, folder), model, rotation, backend, kv=kv)
    return ParameterRotator(model, rotation, backend, kv=kv)


class FactorRotator(Generic[ModelT]):
    """Any scheme, as factors and an attention factor.

    Factors change in an overlay of a few hundred bytes. Where the loaded model is mapped from it,
    it sees the change at once, which is measured before it is relied on; elsewhere (a GPU has
    copies of its own) every scheme loads the model again.
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
        try:
            self._updates_in_place = self._sees_changes()
        except BaseException:
            self.close()
            raise

    @property
    def updates_in_place(self) -> bool:
        """Whether the loaded model sees a change of its factors."""
        return self._updates_in_place

    def rotate(self, scaling: RopeScaling) -> Rotated:
        """Return the model under the factors of `scaling`."""
        self._file.write(self._rotation.absolute_factors(scaling))
        if not self._updates_in_place or self._model is None:
            self._reload()
        return self._rotated(self._rotation.magnitude(scaling))

    def close(self) -> None:
        """Free the model and remove the working files."""
        if self._model is not None:
            self._model.close()
            self._model = None
        self._file.remove()

    def _rotated(self, magnitude: float) -> Rotated:
        from ggufrope.rope.effective import RopeOverrides

        model = self._model
        if model is None:
            raise RequestError("the rotator was closed")
        # Neither the file's scaling nor its attention factor acts: the scheme is all there is.
        rope = RopeOverrides(
            scaling_type="none",
            yarn_ext_factor=0.0,
            yarn_attn_factor=magnitude / (self._metadata.attn_factor or 1.0),
        )
        return _rotated(self._backend, model, self._metadata, self._kv, rope)

    def _reload(self) -> None:
        if self._model is not None:
            self._model.close()
            self._model = None
        self._model = self._backend.load(self._file.path, self._file.kv_overrides)

    def _sees_changes(self) -> bool:
        """Whether factors written under a loaded model act as they do after loading it anew."""
        pairs = self._rotation.pairs
        plain, halved = ((factor,) * pairs for factor in (1.0, 2.0))
        native = self._rotation.native or plain
        self._file.write(native)
        self._reload()
        before = self._measure()
        self._file.write(tuple(own * half for own, half in zip(native, halved, strict=True)))
        at_once = self._measure()
        self._reload()
        return before != at_once == self._measure()

    def _measure(self) -> tuple[float, ...]:
        rotated = self._rotated(1.0)
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
    """Schemes that are context parameters: for architectures that load no factors.

    The attention factor of YaRN is fixed by its scale there; another one is metadata, and loads
    the model again.
    """

    updates_in_place = True

    def __init__(
        self, model: StoredModel, rotation: Rotation, backend: Backend[ModelT], *, kv: KvTypes
    ) -> None:
        self._path = model.path
        self._metadata = model.metadata
        self._rotation = rotation
        self._backend = backend
        self._kv = kv
        self._attention: float | None = None
        self._model: ModelT | None = None

    def rotate(self, scaling: RopeScaling) -> Rotated:
        """Return the model under the context parameters of `scaling`."""
        from ggufrope.rope.architectures import architecture
        from ggufrope.rope.llamacpp import yarn_file_magnitude
        from ggufrope.rope.overrides import context_overrides
        from ggufrope.rope.scaling import Yarn

        rope, _ = context_overrides(scaling, self._metadata)
        implied = 1.0
        if isinstance(scaling, Yarn):
            arch = architecture(self._metadata.architecture)
            implied = yarn_file_magnitude(self._metadata, arch, scaling.factor)
        model = self._with_attention(self._rotation.magnitude(scaling) / implied)
        return _rotated(self._backend, model, self._metadata, self._kv, rope)

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
            self._model = self._backend.load(self._path, {key: factor})
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
