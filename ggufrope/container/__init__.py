"""The GGUF file: reading its header, rewriting it, storing the result. Knows nothing of RoPE."""

from ggufrope.container.arrays import read_array, read_span, read_tensor
from ggufrope.container.checks import LayoutFinding, layout_findings
from ggufrope.container.edits import PADDING_KEY, Edits, TensorData, TypedValue, float_tensor
from ggufrope.container.guard import Guard, check_guards, find_guards
from ggufrope.container.ladder import Rejection, Strategy
from ggufrope.container.layout import Rewrite, plan_rewrite
from ggufrope.container.locate import locate
from ggufrope.container.reader import parse_header, read_header
from ggufrope.container.recovery import Recovery, UndoReceipt, recover, undo
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

__all__ = [
    "PADDING_KEY",
    "ArrayValue",
    "ByteOrder",
    "Edits",
    "Guard",
    "Header",
    "KeyValue",
    "LayoutFinding",
    "Recovery",
    "Rejection",
    "Rewrite",
    "Scalar",
    "Span",
    "StorePlan",
    "StoreReceipt",
    "Strategy",
    "TensorData",
    "TensorInfo",
    "TypedValue",
    "UndoReceipt",
    "Value",
    "ValueType",
    "carry_out",
    "check_guards",
    "find_guards",
    "float_tensor",
    "layout_findings",
    "locate",
    "parse_header",
    "plan_rewrite",
    "plan_store",
    "read_array",
    "read_header",
    "read_span",
    "read_tensor",
    "recover",
    "undo",
]
