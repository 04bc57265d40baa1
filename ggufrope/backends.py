"""Opens models, and makes them rotate as asked: the one seam to a runtime.

A `Backend` loads files and opens contexts: `LlamaBackend` with llama.cpp, `FakeBackend` with the
public fake. Runs, searches and scripts all use one. A model at a server is opened by `open_server`
and taken as it is. Above them `ScaledModel` follows the scaling requests of a run: by context
parameters where these say the scheme exactly, else by an overlay of keys and factor tensors, else
by a working copy. The candidates of a search have `ggufrope.search.rotators`.

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
from ggufrope.lm import LanguageContext, LanguageModel, OpenContext

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from httpx import BaseTransport
    from typing_extensions import Self

    from ggufrope.container.ggml import KvTypes
    from ggufrope.patching.request import ScalingRequest
    from ggufrope.rope.effective import RopeOverrides
    from ggufrope.rope.metadata import RopeMetadata
    from ggufrope.runtime.context import Context
    from ggufrope.runtime.fake import FakeContext, FakeModel
    from ggufrope.runtime.model import Model
    from ggufrope.server.model import ServerModel

OverrideValue: TypeAlias = int | float | bool | str

OPENER = f"{__name__}:open_model"
"""How worker processes open models with llama.cpp."""

SERVED_AS_IT_IS = "a server scales as it was started: give no `scaling` and no `kv` with `server`"

_UNKNOWN_CONTEXT = 4096
_SPARE = 512
"""Cells for about eight questions with their distractors."""


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
    experts_on_cpu: Literal["all"] | int = field(
        default=0, metadata={"help": "layers whose experts stay on the CPU, from the first"}
    )
    rpc: tuple[str, ...] = field(
        default=(),
        metadata={"help": "llama.cpp's RPC servers, HOST:PORT; GPUs before those of this machine"},
    )
    offload_kqv: bool = field(
        default=True, metadata={"help": "keep the K/V cache of a layer on the device of the layer"}
    )
    flash_attention: bool | None = None
    threads: int | None = None
    batch_tokens: int | None = None
    micro_batch_tokens: int | None = None
    server: str | None = field(
        default=None, metadata={"help": "address of a running server; `models` are models of it"}
    )
    timeout_seconds: float | None = field(
        default=None, metadata={"help": "longest silence of a server; none: half an hour"}
    )
    parallel: int | None = field(
        default=None, metadata={"help": "prompts at once to a server; none: as it has slots"}
    )
    num_ctx: int | None = field(
        default=None, metadata={"help": "context that requests to an Ollama server ask for"}
    )

    def rpc_problems(self) -> Iterator[str]:
        """Yield what is wrong with `rpc`."""
        if self.rpc:
            from ggufrope.runtime.rpc import address_problems

            yield from address_problems(self.rpc)
            if self.server is not None:
                yield "`rpc` is for models in this process, and `server` has its own"
            if len(self.devices) > 1:
                yield "`rpc` is for one worker, a server has one client: give one of `devices`"


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
            main_gpu=self.settings.main_gpu,
            tensor_split=self.settings.tensor_split,
            experts_on_cpu=self.settings.experts_on_cpu,
            rpc=self.settings.rpc,
        )
        context = ContextSettings(
            n_ctx=context_tokens, spare=_SPARE, offload_kqv=self.settings.offload_kqv
        )
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
            experts_on_cpu=self.settings.experts_on_cpu,
            rpc=self.settings.rpc,
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
            offload_kqv=self.settings.offload_kqv,
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
            "layers on GPU": f"{placement.layers_on_gpu} of {placement.layers}"
            if placement.layers
            else "not known",
        }
        if experts := self.settings.experts_on_cpu:
            count = model.metadata(f"{model.architecture}.expert_count") or "0"
            kept = model.n_layer if experts == "all" else min(experts, model.n_layer)
            known["experts on CPU"] = (
                f"{kept} of {model.n_layer} layers" if int(count) else "the model has no experts"
            )
        for device in library.devices(model.servers):
            if device.kind in ("gpu", "igpu"):
                layers = placement.layer_devices.count(device.name)
                known[device.name] = (
                    f"{'RPC server ' if device.server else ''}{device.description}, "
                    f"{byte_size(device.memory_total)}, "
                    f"{byte_size(placement.weights_on(device.name))} of it weights of {layers} "
                    f"layers, {byte_size(device.memory_free)} free with the model loaded"
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


def require_room(path: Path, settings: RuntimeSettings) -> None:
    """Raise InsufficientMemoryError where the weights of a second model have no room beside what is
    loaded, before anything of them is read.

    Layers on a GPU are weighed when they are placed (`runtime.placement`).
    """
    from ggufrope._format import byte_size
    from ggufrope.container.pins import model_paths
    from ggufrope.errors import InsufficientMemoryError
    from ggufrope.runtime import library, memory

    if (settings.rpc or library.can_offload()) and settings.gpu_layers != 0:
        return
    need = sum(part.stat().st_size for part in model_paths(str(path)))
    free = memory.free_memory()[library.CPU]
    if need > free:
        raise InsufficientMemoryError(
            f"{path.name}: a second model of {byte_size(need)} does not fit beside the first: "
            f"{byte_size(free)} are free; compare on a machine with more memory, or with a smaller "
            "`base`"
        )


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


def open_server(
    settings: RuntimeSettings,
    name: str | None = None,
    *,
    transport: BaseTransport | None = None,
) -> ServerModel:
    """Return the model of that name at the server of the settings, or its only one.

    `transport` takes the place of the network, for tests. Raises ServerError where it does not
    answer, RequestError where it has no such model, MissingDependencyError without httpx.
    """
    from ggufrope.server.address import Credentials, normal_address
    from ggufrope.server.client import TIMEOUT_SECONDS, Client
    from ggufrope.server.connect import connect
    from ggufrope.server.model import ServerModel

    client = Client(
        normal_address(settings.server or ""),
        credentials=Credentials.from_environment(),
        timeout_seconds=settings.timeout_seconds or TIMEOUT_SECONDS,
        transport=transport,
    )
    try:
        dialect = connect(client, name, num_ctx=settings.num_ctx)
        return ServerModel(client, dialect, lanes=settings.parallel)
    except BaseException:
        client.close()
        raise


class ServedModel:
    """A model at a server; an `OpenedModel`. It rotates as the server was started."""

    def __init__(self, model: ServerModel) -> None:
        self._model = model

    @property
    def model(self) -> ServerModel:
        """The model."""
        return self._model

    @property
    def details(self) -> dict[str, str]:
        """What the server tells, and what it cannot give."""
        info = self._model.info
        known = {
            "server": info.dialect,
            "server build": info.build,
            "server context": info.context_tokens,
            "prompts at once": self._model.lanes,
            "not given by the server": "; ".join(self._model.lacks),
        }
        return {name: str(value) for name, value in known.items() if value}

    def contexts(self, request: ScalingRequest, kv: KvTypes, *, largest: int) -> OpenContext:
        """Return a function that opens contexts. Raises RequestError for any scaling."""
        if not request.is_file:
            raise RequestError(SERVED_AS_IT_IS)
        return self._model.open

    def close(self) -> None:
        """Close the connections."""
        self._model.close()


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
