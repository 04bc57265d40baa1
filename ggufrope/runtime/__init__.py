"""llama.cpp, through llama-cpp-python's low-level bindings; imported only when first used."""

from ggufrope.runtime.branch import AnswerScore, Branch
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings

__all__ = ["AnswerScore", "Branch", "Context", "ContextSettings", "Model"]
