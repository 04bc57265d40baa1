"""The GGUF file: reading its header, rewriting it, storing the result. Knows nothing of RoPE.

Names are imported when they are first used: showing a header must not pay for the edit engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufrope._lazy import importer

if TYPE_CHECKING:
    from ggufrope.container.arrays import read_array, read_span, read_tensor
    from ggufrope.container.checks import LayoutFinding, layout_findings
    from ggufrope.container.compare import (
        Difference,
        KeyDifference,
        TensorDifference,
        Verification,
        diff,
        tensor_digests,
        verify,
        weights_digest,
    )
    from ggufrope.container.composition import Rewrite
    from ggufrope.container.edits import PADDING_KEY, Edits, TensorData, TypedValue, float_tensor
    from ggufrope.container.guard import Guard, check_guards, find_guards
    from ggufrope.container.ladder import Rejection, Strategy
    from ggufrope.container.layout import plan_rewrite
    from ggufrope.container.location import locate
    from ggufrope.container.reader import parse_header, read_header
    from ggufrope.container.recovery import Recovery, UndoReceipt, recover, undo
    from ggufrope.container.shards import ModelFiles, Shard, distribute, open_model, sibling_paths
    from ggufrope.container.store import StorePlan, StoreReceipt, carry_out, plan_store
    from ggufrope.container.types import (
        ArrayValue,
        ByteOrder,
        Header,
        KeyValue,
        Scalar,
        Span,
        TensorInfo,
        Value,
        ValueType,
    )

_HOMES = {
    "arrays": ("read_array", "read_span", "read_tensor"),
    "checks": ("LayoutFinding", "layout_findings"),
    "compare": (
        "Difference",
        "KeyDifference",
        "TensorDifference",
        "Verification",
        "diff",
        "tensor_digests",
        "verify",
        "weights_digest",
    ),
    "composition": ("Rewrite",),
    "edits": ("PADDING_KEY", "Edits", "TensorData", "TypedValue", "float_tensor"),
    "guard": ("Guard", "check_guards", "find_guards"),
    "ladder": ("Rejection", "Strategy"),
    "layout": ("plan_rewrite",),
    "location": ("locate",),
    "reader": ("parse_header", "read_header"),
    "recovery": ("Recovery", "UndoReceipt", "recover", "undo"),
    "shards": ("ModelFiles", "Shard", "distribute", "open_model", "sibling_paths"),
    "store": ("StorePlan", "StoreReceipt", "carry_out", "plan_store"),
    "types": (
        "ArrayValue",
        "ByteOrder",
        "Header",
        "KeyValue",
        "Scalar",
        "Span",
        "TensorInfo",
        "Value",
        "ValueType",
    ),
}

__all__ = [
    "PADDING_KEY",
    "ArrayValue",
    "ByteOrder",
    "Difference",
    "Edits",
    "Guard",
    "Header",
    "KeyDifference",
    "KeyValue",
    "LayoutFinding",
    "ModelFiles",
    "Recovery",
    "Rejection",
    "Rewrite",
    "Scalar",
    "Shard",
    "Span",
    "StorePlan",
    "StoreReceipt",
    "Strategy",
    "TensorData",
    "TensorDifference",
    "TensorInfo",
    "TypedValue",
    "UndoReceipt",
    "Value",
    "ValueType",
    "Verification",
    "carry_out",
    "check_guards",
    "diff",
    "distribute",
    "find_guards",
    "float_tensor",
    "layout_findings",
    "locate",
    "open_model",
    "parse_header",
    "plan_rewrite",
    "plan_store",
    "read_array",
    "read_header",
    "read_span",
    "read_tensor",
    "recover",
    "sibling_paths",
    "tensor_digests",
    "undo",
    "verify",
    "weights_digest",
]

__getattr__ = importer(__name__, _HOMES)
