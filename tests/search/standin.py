"""A backend over the public fake that answers the better, the nearer its factors are to hidden
ones: what a search is tried on without weights."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from ggufrope.backends.runtimes import FakeBackend
from ggufrope.container.reader import read_header, read_tensor
from ggufrope.rope.keys import ROPE_FACTORS_LONG, ROPE_FREQS
from ggufrope.runtime.fake import FakeContext, FakeModel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ggufrope.rope.effective import RopeOverrides

ORIGINAL, TARGET, N_ROT = 256, 1024, 16
HIDDEN = tuple(np.geomspace(1.0, 3.0, N_ROT // 2).tolist())


def write_model(path: Path, architecture: str = "llama", **factors: tuple[float, ...]) -> Path:
    """A GGUF file with the metadata of a small model, one tensor, and these factor tensors."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(ORIGINAL)
    writer.add_block_count(1)
    writer.add_embedding_length(N_ROT)
    writer.add_head_count(1)
    writer.add_rope_dimension_count(N_ROT)
    writer.add_tensor("token_embd.weight", np.zeros((4, N_ROT), dtype=np.float32))
    for name, values in factors.items():
        writer.add_tensor(f"{name}.weight", np.array(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def factors_in(path: Path) -> tuple[float, ...]:
    """The factors llama.cpp would find in the last shard of the model at `path`."""
    named = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", path.name)
    holder = path if named is None else path.with_name(f"{named[1]}-{named[2]}-of-{named[2]}.gguf")
    header = read_header(holder)
    name = ROPE_FREQS if header.tensor(ROPE_FREQS) else ROPE_FACTORS_LONG
    return tuple(np.frombuffer(read_tensor(holder, header, name), dtype="<f4").tolist())


class StandInModel(FakeModel):
    """A fake model that knows where it came from, and what its factors were at load."""

    def __init__(self, path: Path, factors: tuple[float, ...] | None) -> None:
        super().__init__(n_vocab=1024)
        self.path = path
        self.factors = factors
        self.closed = False

    def close(self) -> None:
        self.closed = True


class StandInBackend(FakeBackend):
    """With `mapped`, loaded models see changes of their file."""

    def __init__(self, *, mapped: bool = True, hidden: tuple[float, ...] = HIDDEN) -> None:
        super().__init__()
        self.mapped = mapped
        self.hidden = hidden
        self.loads: list[tuple[Path, dict[str, int | float | bool | str]]] = []
        self.overrides: list[RopeOverrides] = []

    def load(
        self, path: Path, kv_overrides: Mapping[str, int | float | bool | str]
    ) -> StandInModel:
        self.loads.append((path, dict(kv_overrides)))
        return StandInModel(path, None if self.mapped else factors_in(path))

    def open_context(
        self, model: FakeModel, n_ctx: int, *, rope: RopeOverrides, **more: Any
    ) -> FakeContext:
        assert isinstance(model, StandInModel)
        assert not model.closed
        self.overrides.append(rope)
        factors = factors_in(model.path) if model.factors is None else model.factors
        model.confidence = self.confidence(factors)
        return super().open_context(model, n_ctx, rope=rope, **more)

    def confidence(self, factors: tuple[float, ...]) -> float:
        """From 0.98 at the hidden factors down to almost nothing."""
        distance = np.abs(np.log(np.array(factors) / self.hidden)).mean()
        return 0.98 * math.exp(-3 * float(distance)) + 0.001
