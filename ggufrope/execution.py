"""Plans carried out with llama.cpp: files, patches and the runtime behind `runs`.

Worker processes import `open_subject` by name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ggufrope.lm import OpenContext
    from ggufrope.patching.request import ScalingRequest
    from ggufrope.rope.effective import RopeOverrides
    from ggufrope.rope.metadata import RopeMetadata
    from ggufrope.runs.plan import KvTypes, RuntimeSettings
    from ggufrope.runtime.context import Context
    from ggufrope.runtime.model import Model

_UNKNOWN_CONTEXT = 4096
_SPARE = 512
"""Cells for about eight questions with their distractors."""


def open_subject(path: Path, settings: RuntimeSettings) -> LlamaSubject:
    """A model file as a run's subject, loaded with llama.cpp."""
    return LlamaSubject(path, settings)


class LlamaSubject:
    """One model under test; trials share its weights where context parameters can say them.

    A scheme that lives in tensors is tried on a working copy, patched in a temporary folder
    beside nothing of the user's and removed with the subject. The weights are loaded when they
    are first needed: "auto" layers depend on the longest context of the run.
    """

    def __init__(self, path: Path, settings: RuntimeSettings) -> None:
        from ggufrope.patching.inspection import read_model

        self._settings = settings
        self._stored = read_model(path)
        self._cleanup = ExitStack()
        self._models: dict[ScalingRequest | None, Model] = {}
        self._gpu_layers: int | Literal["all"] | None = (
            None if settings.gpu_layers == "auto" else settings.gpu_layers
        )

    @property
    def model(self) -> Model:
        """The model as it stands."""
        if None not in self._models:
            self._models[None] = self._load(self._stored.path)
        return self._models[None]

    @property
    def details(self) -> dict[str, str]:
        """Versions, devices with their memory, and where the layers really went."""
        from ggufrope._format import byte_size
        from ggufrope.runtime import library

        versions = library.versions()
        placement = self.model.placement
        known = {
            "llama-cpp-python": versions.llama_cpp_python,
            "llama.cpp": f"{versions.llama_cpp} ({versions.commit})",
            "system": versions.system_info,
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

    def contexts(self, trial: ScalingRequest, kv: KvTypes, *, largest: int) -> OpenContext:
        """Open contexts of this model under `trial`; see `runs.subject.Subject`."""
        from ggufrope.patching.request import resolve
        from ggufrope.patching.trial import trial_overrides

        if self._gpu_layers is None:
            self._gpu_layers = self._fitting_layers(largest)
        if trial.is_file:
            return self._opener(self.model, kv, lambda n_ctx: None)
        metadata = self._stored.metadata
        original = metadata.original_context or metadata.context_length or largest
        if trial.target_context is None and trial.factor is None:
            trial = replace(trial, target_context=max(largest, original))
        target = resolve(trial, metadata)

        def overrides(n_ctx: int) -> RopeOverrides | None:
            return trial_overrides(target, metadata, context_tokens=n_ctx)

        in_tensors = trial.bake or trial.keep_short_context
        if not in_tensors and overrides(largest) is not None:
            return self._opener(self.model, kv, overrides)
        return self._opener(self._copy(trial), kv, lambda n_ctx: None)

    def close(self) -> None:
        """Free the models and remove working copies."""
        self._cleanup.close()
        self._models.clear()

    def _fitting_layers(self, n_ctx: int) -> int:
        """The most layers that leave room on the GPUs for an f16 cache of `n_ctx` tokens."""
        from ggufrope.runtime.loading import LoadOptions
        from ggufrope.runtime.placement import fitting_layers
        from ggufrope.runtime.settings import ContextSettings

        options = LoadOptions(
            main_gpu=self._settings.main_gpu, tensor_split=self._settings.tensor_split
        )
        settings = ContextSettings(n_ctx=n_ctx, spare=_SPARE)
        return fitting_layers(self._stored.path, settings, options)

    def _load(self, path: Path) -> Model:
        from ggufrope.runtime.model import Model

        if self._gpu_layers is None:
            declared = self._stored.metadata.context_length
            self._gpu_layers = self._fitting_layers(declared or _UNKNOWN_CONTEXT)
        model = Model.open(
            path,
            gpu_layers=self._gpu_layers,
            main_gpu=self._settings.main_gpu,
            tensor_split=self._settings.tensor_split,
        )
        self._cleanup.callback(model.close)
        return model

    def _copy(self, trial: ScalingRequest) -> Model:
        """The model of a working copy that has the scheme written in."""
        from ggufrope.patching.plan import apply, plan_patch

        if trial not in self._models:
            folder = tempfile.TemporaryDirectory(prefix="ggufrope-trial-")
            self._cleanup.callback(folder.cleanup)
            path = Path(folder.name) / self._stored.path.name
            apply(plan_patch(self._stored.path, trial, output=path))
            self._models[trial] = self._load(path)
        return self._models[trial]

    def _opener(
        self, model: Model, kv: KvTypes, overrides: Callable[[int], RopeOverrides | None]
    ) -> OpenContext:
        from ggufrope.patching.inspection import read_model
        from ggufrope.rope.effective import RopeOverrides
        from ggufrope.runtime.context import Context
        from ggufrope.runtime.settings import ContextSettings

        metadata = read_model(model.path).metadata

        def open_context(n_ctx: int) -> Context:
            return Context(
                model,
                ContextSettings(
                    n_ctx=n_ctx,
                    spare=spare_cells(metadata, n_ctx),
                    type_k=kv.k,
                    type_v=kv.v,
                    flash_attention=self._settings.flash_attention,
                    rope=overrides(n_ctx) or RopeOverrides(),
                    n_batch=self._settings.batch_tokens,
                    n_ubatch=self._settings.micro_batch_tokens,
                    n_threads=self._settings.threads,
                ),
            )

        return open_context


def spare_cells(metadata: RopeMetadata, n_ctx: int) -> int:
    """Cells a context can have beyond `n_ctx` for questions: none where llama.cpp would then take
    the long factors of a LongRoPE file for its short ones, or where it is not known what it does.
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
