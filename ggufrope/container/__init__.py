"""The GGUF file: reading its header, rewriting it, storing the result. Knows nothing of RoPE."""

from ggufrope.container.arrays import read_array, read_span, read_tensor
from ggufrope.container.checks import LayoutFinding, layout_findings
from ggufrope.container.edits import PADDING_KEY, Edits, TensorData, TypedValue, float_tensor
from ggufrope.container.layout import Rewrite, plan_rewrite
from ggufrope.container.locate import locate
from ggufrope.container.reader import parse_header, read_header
from ggufrope.container.store import (
    Rejection,
    StorePlan,
    StoreReceipt,
    Strategy,
    carry_out,
    plan_store,
)
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
    "Header",
    "KeyValue",
    "LayoutFinding",
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
    "Value",
    "ValueType",
    "carry_out",
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
]
