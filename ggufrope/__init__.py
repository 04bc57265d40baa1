"""Make a GGUF model reach further, prove that it did, and never break the file."""

from importlib.metadata import version

__version__ = version("ggufrope")
