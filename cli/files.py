"""Moved to `values`."""

from .values import model_path, write_new

__all__ = ["model_path", "write_new"]
