"""llama.cpp as a search sees it, and the search's progress on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ggufrope._format import duration

from .output import talk
from .text import safe

if TYPE_CHECKING:
    from ggufrope.rope.effective import RopeOverrides
    from ggufrope.runtime.context import Context
    from ggufrope.runtime.model import Model
    from ggufrope.search.engine import SearchProgress

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaRuntime:
    """Loads models and opens contexts with these settings and llama.cpp's own for the rest."""

    gpu_layers: int | Literal["all"] = "all"
    type_k: str = "f16"
    type_v: str = "f16"
    threads: int | None = None

    def load(self, path: Path, kv_overrides: Mapping[str, int | float | bool | str]) -> Model:
        from ggufrope.runtime.model import Model

        return Model.open(path, kv_overrides=kv_overrides, gpu_layers=self.gpu_layers)

    def open_context(self, model: Model, n_ctx: int, rope: RopeOverrides) -> Context:
        from ggufrope.execution import spare_cells
        from ggufrope.patching.inspection import read_model
        from ggufrope.runtime.context import Context
        from ggufrope.runtime.settings import ContextSettings

        settings = ContextSettings(
            n_ctx=n_ctx,
            spare=spare_cells(read_model(model.path).metadata, n_ctx),
            rope=rope,
            type_k=self.type_k,
            type_v=self.type_v,
            n_threads=self.threads,
        )
        return Context(model, settings)


class SearchBoard:
    """The stage at hand, the best loss so far, time left, and the losses as a sparkline."""

    def __init__(self) -> None:
        from rich.live import Live

        self._losses: list[float] = []
        self._stage = ""
        self._live = Live(console=talk(), transient=True, refresh_per_second=4)

    def __enter__(self) -> SearchBoard:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def watch(self, progress: SearchProgress) -> None:
        """Show one more candidate."""
        stage = progress.candidate.stage
        if stage != self._stage:
            self._stage, self._losses = stage, []
        self._losses.append(progress.candidate.loss)
        self._live.update(self._shown(progress))

    def _shown(self, progress: SearchProgress) -> Any:
        from rich.text import Text

        best = "—" if progress.best is None else f"{progress.best:.4f}"
        return Text(
            safe(
                f"{self._stage} {progress.done}/{progress.planned} · best {best} nat/token · "
                f"{duration(progress.elapsed_seconds)} gone, "
                f"{duration(progress.left_seconds)} left\n"
                f"{sparkline(self._losses[-_WIDTH:])}"
            )
        )


def sparkline(values: list[float]) -> str:
    """Values as a row of bars, the least the lowest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)
