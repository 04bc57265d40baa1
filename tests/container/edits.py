"""A model of several blocks, and edits of it with the strategy that each must take."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufrope.container.reader import read_header
from ggufrope.container.store import execute, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import Edits, TypedValue, ValueType, float_tensor
from ggufrope.container.writer import plan_rewrite
from tests.container.writer import STRING, Model, Tensor

if TYPE_CHECKING:
    from pathlib import Path

    from ggufrope.container.filesystem import FileLayer
    from ggufrope.container.store import StorePlan


def blocky_model(order: str = "<") -> Model:
    """Return a model whose header and tensors each cross several blocks of 4096 bytes."""
    tokens = [f"token {n}" for n in range(900)]
    return Model(
        order=order,
        metadata=[
            ("general.architecture", STRING, "llama"),
            ("llama.context_length", 4, 2048),
            ("tokenizer.ggml.tokens", 9, (STRING, tokens)),
        ],
        tensors=[
            Tensor("rope_freqs.weight", (8,), struct.pack(order + "8f", *range(1, 9))),
            Tensor("a.weight", (5000,), bytes(n % 251 for n in range(20000))),
            Tensor("b.weight", (2051,), bytes(n % 241 for n in range(8204))),
            Tensor("c.weight", (7,), bytes(range(28))),
        ],
    )


@dataclass(frozen=True)
class Case:
    """An edit and the strategy it must take; `reserved` bytes are left in the file beforehand."""

    name: str
    edits: Edits
    strategy: Strategy
    reserved: int | None = None
    requested: bool = False


def u32(value: int) -> TypedValue:
    return TypedValue(type=ValueType.UINT32, value=value)


def text(value: str) -> TypedValue:
    return TypedValue(type=ValueType.STRING, value=value)


FACTORS = float_tensor([2.0] * 8, "<")
SCALING = {"llama.rope.scaling.type": text("yarn"), "llama.rope.scaling.factor": u32(4)}

CASES = (
    Case("same size", Edits(set={"llama.context_length": u32(8192)}), Strategy.OVERWRITE),
    Case(
        "same size tensor",
        Edits(put_tensors={"rope_freqs.weight": FACTORS}),
        Strategy.OVERWRITE,
    ),
    Case("last tensor goes", Edits(remove_tensors=frozenset({"c.weight"})), Strategy.RESERVE),
    Case("reserved", Edits(set=SCALING), Strategy.RESERVE, reserved=512),
    Case(
        "tensor appended",
        Edits(set=SCALING, put_tensors={"rope_factors_long.weight": FACTORS}),
        Strategy.RESERVE,
        reserved=512,
    ),
    Case(
        "first tensor goes",
        Edits(remove_tensors=frozenset({"rope_freqs.weight"})),
        Strategy.RESERVE,
        reserved=512,
    ),
    Case("grow", Edits(set=SCALING), Strategy.GROW),
    Case("grow twice", Edits(set=SCALING), Strategy.GROW, reserved=10),
    Case(
        "grow and append",
        Edits(set=SCALING, put_tensors={"rope_factors_long.weight": FACTORS}),
        Strategy.GROW,
    ),
    Case("clone", Edits(set=SCALING), Strategy.CLONE, requested=True),
    Case("stream", Edits(set=SCALING), Strategy.STREAM, requested=True),
    Case(
        "middle tensor goes",
        Edits(remove_tensors=frozenset({"a.weight"})),
        Strategy.STREAM,
        requested=True,
    ),
)


def prepare(path: Path, case: Case, model: Model | None = None) -> bytes:
    """Write the model that the case starts from, and return its bytes."""
    path.write_bytes((model or blocky_model()).encoded())
    if case.reserved is not None:
        rewrite = plan_rewrite(read_header(path), Edits(), reserve=case.reserved)
        output = path.with_suffix(".reserved")
        execute(plan_store(path, rewrite, output=output, strategy=Strategy.STREAM))
        output.replace(path)
    return path.read_bytes()


def plan(path: Path, case: Case, files: FileLayer) -> StorePlan:
    wanted = case.strategy if case.requested else None
    rewrite = plan_rewrite(read_header(path), case.edits)
    # Asking every process for its open files takes longer than all the rest.
    return plan_store(path, rewrite, strategy=wanted, force={"in-use"}, files=files)
