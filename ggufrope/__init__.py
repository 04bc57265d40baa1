"""Make a GGUF model reach further, prove that it did, and never break the file."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    """`__version__`, looked up when asked for: finding it takes longer than reading a header."""
    if name == "__version__":
        from importlib.metadata import version

        return version("ggufrope")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
