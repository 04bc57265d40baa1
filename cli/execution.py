"""The implementations a run is carried out with: files, patches and llama.cpp behind `runs`.

Worker processes import `open_subject` by name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggufrope.evals.types import OpenContext
    from ggufrope.patching import Target
    from ggufrope.rope import RopeOverrides
    from ggufrope.runs.plan import KvTypes, RuntimeSettings, Trial
    from ggufrope.runtime import Context, Model

OPENER = f"{__name__}:open_subject"


def open_subject(path: Path, settings: RuntimeSettings) -> LlamaSubject:
    """A model file as a run's subject, loaded with llama.cpp."""
    return LlamaSubject(path, settings)


class LlamaSubject:
    """One model under test; trials share its weights where context parameters can say them.

    A scheme that lives in tensors is tried on a working copy, patched in a temporary folder
    beside nothing of the user's and removed with the subject.
    """

    def __init__(self, path: Path, settings: RuntimeSettings) -> None:
        from ggufrope.patching import read_model

        self._settings = settings
        self._stored = read_model(path)
        self._cleanup = ExitStack()
        self._copies: dict[Trial, Model] = {}
        try:
            self.model = self._load(path)
        except BaseException:
            self.close()
            raise

    @property
    def details(self) -> dict[str, str]:
        """Versions, devices and where the layers really went."""
        from ggufrope.runtime import library

        versions = library.versions()
        placement = self.model.placement
        return {
            "llama-cpp-python": versions.llama_cpp_python,
            "llama.cpp": f"{versions.llama_cpp} ({versions.commit})",
            "system": versions.system_info,
            "layers on GPU": f"{placement.layers_on_gpu} of {placement.layers}",
        }

    def contexts(self, trial: Trial, kv: KvTypes, *, largest: int) -> OpenContext:
        """Open contexts of this model under `trial`; see `runs.subject.Subject`."""
        from ggufrope.patching import resolve, trial_overrides

        from .scaling import wish_of

        if trial.scheme == "file" and trial.from_config is None:
            return self._opener(self.model, kv, lambda n_ctx: None)
        metadata = self._stored.metadata
        original = metadata.original_context or metadata.context_length or largest
        wish = wish_of(trial, target_context=max(largest, original))
        target = resolve(wish, metadata)

        def overrides(n_ctx: int) -> RopeOverrides | None:
            return trial_overrides(target, metadata, context_tokens=n_ctx)

        in_tensors = wish.bake or wish.two_faced
        if not in_tensors and overrides(largest) is not None:
            return self._opener(self.model, kv, overrides)
        return self._opener(self._copy(trial, target), kv, lambda n_ctx: None)

    def close(self) -> None:
        """Free the models and remove working copies."""
        self._cleanup.close()

    def _load(self, path: Path) -> Model:
        from ggufrope.runtime import Model

        gpu_layers = self._settings.gpu_layers
        model = Model.open(
            path,
            gpu_layers=gpu_layers if gpu_layers != "auto" else "all",
            main_gpu=self._settings.main_gpu,
            tensor_split=self._settings.tensor_split,
        )
        self._cleanup.callback(model.close)
        return model

    def _copy(self, trial: Trial, target: Target) -> Model:
        """The model of a working copy that has the scheme written in."""
        from ggufrope.patching import apply, plan_patch

        from .scaling import wish_of

        if trial not in self._copies:
            folder = tempfile.TemporaryDirectory(prefix="ggufrope-trial-")
            self._cleanup.callback(folder.cleanup)
            path = Path(folder.name) / self._stored.path.name
            wish = wish_of(trial, target_context=target.context_length)
            apply(plan_patch(self._stored.path, wish, output=path))
            self._copies[trial] = self._load(path)
        return self._copies[trial]

    def _opener(
        self, model: Model, kv: KvTypes, overrides: Callable[[int], RopeOverrides | None]
    ) -> OpenContext:
        from ggufrope.rope import RopeOverrides
        from ggufrope.runtime import Context, ContextSettings

        def open_context(n_ctx: int) -> Context:
            return Context(
                model,
                ContextSettings(
                    n_ctx=n_ctx,
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
