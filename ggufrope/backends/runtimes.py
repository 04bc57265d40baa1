"""Runtimes: what loads files and opens contexts of them, llama.cpp and the public fake."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from ggufrope.backends.settings import RuntimeSettings
from ggufrope.errors import RequestError
from ggufrope.lm import LanguageContext, LanguageModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

    from ggufrope.container.ggml import KvTypes
    from ggufrope.rope.effective import RopeOverrides
    from ggufrope.runtime.context import Context
    from ggufrope.runtime.fake import FakeContext, FakeModel
    from ggufrope.runtime.model import Model

OverrideValue: TypeAlias = int | float | bool | str

UNKNOWN_CONTEXT = 4096
"""Tokens to leave room for on a GPU where nothing says how many there will be."""
SPARE_CELLS = 512
"""Cells for about eight questions with their distractors."""


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

    settings: RuntimeSettings = field(default_factory=RuntimeSettings)

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
            n_ctx=context_tokens, spare=SPARE_CELLS, offload_kqv=self.settings.offload_kqv
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
            return self.fitted(path, UNKNOWN_CONTEXT).load(path, kv_overrides)
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
