"""What an error becomes: one line on stderr, in the words of the command line, and an exit code.

0 fine · 1 a check failed · 2 usage · 3 bad file · 4 a needed part is missing · 5 the runtime failed

The library names fields in backquotes, as `target_context`; a person who gave options reads
`--target-ctx`. Nothing else turns one into the other.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from ggufrope._format import safe
from ggufrope.errors import (
    BackendError,
    FileError,
    GgufRopeError,
    MissingDependencyError,
    RequestError,
)


class OptionError(GgufRopeError):
    """The value of an option cannot be read. No ValueError: Typer replaces the message of those."""


OTHER_FLAGS = {
    "force": "--force",
    "output": "-o",
    "reserve": "--reserve",
    "context_tokens": "--ctx",
    "memory_bytes": "--memory",
    "contexts": "--ctx",
    "tasks": "--tasks",
    "kv": "--kv",
    "mode": "--mode",
    "depths": "--depths",
    "samples": "--samples",
    "seeds": "--seed",
    "haystack": "--haystack",
    "value": "--value",
    "chunks": "--chunks",
    "text": "--text",
    "gpu_layers": "--gpu-layers",
    "threads": "--threads",
    "recall": "--min-recall",
    "top_ranked": "--min-top-ranked",
    "ruler_share": "--min-ruler-share",
    "short_context_nll": "--max-short-nll",
    "long_context_nll": "--max-long-nll",
    "divergence": "--max-divergence",
    "space": "--space",
    "attention": "--attention",
    "fitness": "--fitness",
    "optimizer": "--optimizer",
    "candidates": "--candidates",
    "finalists": "--finalists",
    "screening_context": "--screening-ctx",
    "screening_samples": "--screening-samples",
    "holdout_samples": "--holdout-samples",
    "budget_seconds": "--budget",
}
"""The flags of the fields of run and search plans; those of a scaling request are in
`ggufrope.patching.command.FLAGS`."""

CHECK_FAILED = 1
BAD_FILE = 3
INTERRUPTED = 130
_CODES: tuple[tuple[type[GgufRopeError], int], ...] = (
    (OptionError, 2),
    (RequestError, 2),
    (FileError, BAD_FILE),
    (MissingDependencyError, 4),
    (BackendError, 5),
)


def exit_code(error: GgufRopeError) -> int:
    """Return the exit code of an error: that of its branch of the tree."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), CHECK_FAILED)


def with_flags(message: str) -> str:
    """Return a message of the library with the flag in place of each field in backquotes."""
    from ggufrope.patching.command import FLAGS

    flags = {**OTHER_FLAGS, **FLAGS}
    return re.sub(r"`(\w+)`", lambda found: flags.get(found[1], found[0]), message)


def run(command: Callable[[], object], *, flags: bool = True) -> int:
    """Call `command`; an expected error becomes one line on stderr and its exit code.

    `flags` is whether the command takes its fields as options, and not from a plan file.
    """
    try:
        command()
    except GgufRopeError as error:
        message = with_flags(str(error)) if flags else str(error)
        line = safe(message).replace("\n", "\\n")  # the name of a file may have a line break
        print(f"ggufrope: {line}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        print("ggufrope: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0
