"""What an error becomes: one line on stderr, in the words of the command line, and an exit code.

0 fine · 1 a check failed · 2 usage · 3 bad file · 4 a needed part is missing · 5 the runtime failed
· 70 a fault of ours · 130 interrupted · 141 whoever read the output is gone

The library names fields in backquotes, as `target_context`; a person who gave options reads
`--target-ctx`. Nothing else turns one into the other.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

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
FAULT = 70
INTERRUPTED = 130
OUTPUT_GONE = 141
TRACEBACK = "GGUFROPE_TRACEBACK"
"""Set in the environment, it shows where a fault of ours is."""
_LONGEST_MESSAGE = 4000
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
    """Call `command`; whatever goes wrong becomes one line on stderr and an exit code.

    `flags` is whether the command takes its fields as options, and not from a plan file.
    """
    _write_anything()
    try:
        code = _code_of(command)
        sys.stdout.flush()
    except GgufRopeError as error:
        _tell(with_flags(str(error)) if flags else str(error))
        return exit_code(error)
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return OUTPUT_GONE
    except OSError as error:
        place = "the output" if error.filename is None else error.filename
        _tell(f"{place}: {error.strerror or error}")
        if error.filename is None:  # the output itself, perhaps: what is left of it has no place
            _drop_output()
        return BAD_FILE
    except MemoryError:
        _tell("out of memory")
        return exit_code(BackendError())
    except Exception as error:
        _tell_fault(error)
        return FAULT
    return code


def _code_of(command: Callable[[], object]) -> int:
    """Call `command`; return the code it leaves with. Raises BrokenPipeError as it is."""
    before = sys.stdout
    try:
        command()
    except SystemExit as leaving:
        # Click and Rich answer a broken pipe themselves, with exit code 1.
        if isinstance(leaving.__context__, BrokenPipeError):
            sys.stdout = before
            raise BrokenPipeError from None
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def _write_anything() -> None:
    """Let the output have characters that its encoding lacks, each as a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """Point standard output at nothing, so that the end of the process does not fail on it."""
    with suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


def _tell(message: str) -> None:
    """Print one line on stderr."""
    # The name of a file may have a line break.
    line = safe(message[:_LONGEST_MESSAGE]).replace("\n", "\\n")
    with suppress(OSError):
        print(f"ggufrope: {line}", file=sys.stderr, flush=True)


def outlive_aborts() -> None:
    """Let llama.cpp end the process with one line and exit code 5 where an assertion of it fails.

    For the commands that load a model in this process."""
    from ggufrope.runtime import library

    library.on_abort = _tell_abort


def _tell_abort(reason: str) -> None:
    _tell(f"llama.cpp ended the process, on what it does not check in a file: {reason}")
    os._exit(exit_code(BackendError()))


def _tell_fault(error: Exception) -> None:
    """Say in one line that the fault is ours, where it is and how to report it."""
    import traceback

    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    _tell(
        f"a fault of ggufrope, not of your request: {type(error).__name__} at "
        f"{Path(where.filename).name}:{where.lineno}: {str(error)[:300]}; to report it, keep this "
        f"line, the command, what it prints with {TRACEBACK}=1 set, and `ggufrope doctor --json`"
    )
