"""What to try for a target context length, and whether it fits in memory."""

from ggufrope.advice.advise import Advice, Option, advise
from ggufrope.advice.memory import MemoryNeed, kv_bytes, longest_context, memory_need

__all__ = [
    "Advice",
    "MemoryNeed",
    "Option",
    "advise",
    "kv_bytes",
    "longest_context",
    "memory_need",
]
