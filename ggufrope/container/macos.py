"""The one file operation of macOS the standard library does not have: cloning a whole file.

See clonefile(2). Import this on macOS only.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def clone_file(source: Path, target: Path) -> None:
    """Makes `target`, which must not exist, a copy that shares all blocks. Raises OSError."""
    call = ctypes.CDLL(None, use_errno=True).clonefile
    call.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint32)
    if call(os.fsencode(source), os.fsencode(target), 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
