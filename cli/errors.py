"""Exit codes, in one place: the only part that turns an error into one.

0 fine · 1 a check failed · 2 usage · 3 bad file · 4 a needed part is missing · 5 the runtime failed
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from ggufrope.errors import (
    BackendError,
    FileError,
    GgufRopeError,
    MissingDependencyError,
    RequestError,
)

from .text import safe


class OptionError(GgufRopeError):
    """The value of an option cannot be read. Not a ValueError: Typer would word that anew."""


CHECK_FAILED = 1
INTERRUPTED = 130
_CODES: tuple[tuple[type[GgufRopeError], int], ...] = (
    (OptionError, 2),
    (RequestError, 2),
    (FileError, 3),
    (MissingDependencyError, 4),
    (BackendError, 5),
)


def exit_code(error: GgufRopeError) -> int:
    """The exit code of an error: that of the branch of the tree it hangs on."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), CHECK_FAILED)


def run(command: Callable[[], object]) -> int:
    """Call `command`; a foreseen error becomes one line on stderr and its exit code."""
    try:
        command()
    except GgufRopeError as error:
        print(f"ggufrope: {safe(str(error))}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        print("ggufrope: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0
