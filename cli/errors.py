"""What an error becomes: one line on stderr, in the words of the command line, and an exit code.

0 fine · 1 a check failed · 2 usage · 3 bad file · 4 a needed part is missing · 5 the runtime failed
· 70 a fault of ours · 130 interrupted · 141 whoever read the output is gone

The library names fields in backquotes, as `target_context`; a person who gave options reads
`--target-ctx`. Nothing else turns one into the other.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    "base": "--base",
    "mode": "--mode",
    "depths": "--depths",
    "samples": "--samples",
    "whole_prompts": "--whole-prompts",
    "distractors": "--distractors",
    "control": "--control",
    "seeds": "--seed",
    "haystack": "--haystack",
    "haystacks": "--haystacks",
    "value": "--value",
    "chunks": "--chunks",
    "text": "--text",
    "format": "--format",
    "thinking": "--thinking",
    "gpu_layers": "--gpu-layers",
    "flash_attention": "--flash-attention",
    "llama_lib": "--llama-lib",
    "experts_on_cpu": "--experts-on-cpu",
    "rpc": "--rpc",
    "threads": "--threads",
    "server": "--server",
    "models": "--model",
    "timeout_seconds": "--timeout",
    "parallel": "--parallel",
    "num_ctx": "--num-ctx",
    "recall": "--min-recall",
    "recall_share": "--min-recall-share",
    "top_ranked": "--min-top-ranked",
    "ruler_share": "--min-ruler-share",
    "short_context_nll": "--max-short-nll",
    "long_context_nll": "--max-long-nll",
    "divergence": "--max-divergence",
    "require": "--require",
    "whole": "--whole",
    "space": "--space",
    "attention": "--attention",
    "fitness": "--fitness",
    "optimizer": "--optimizer",
    "candidates": "--candidates",
    "finalists": "--finalists",
    "screening_context": "--screening-ctx",
    "screening_samples": "--screening-samples",
    "short_weight": "--short-weight",
    "holdout_haystacks": "--holdout-haystacks",
    "budget_seconds": "--budget",
}
"""The flags of the fields of run and search plans; those of a scaling request are in
`ggufrope.patching.command.FLAGS`."""

_RENAMED = {
    "--two-faced": "--keep-short-context",
    "--one-face": "--shared-factors",
    "--holdout-samples": "--holdout-haystacks",
    "--min-first": "--min-top-ranked",
    "--max-short-loss": "--max-short-nll",
    "--max-long-loss": "--max-long-nll",
    "--optimiser": "--optimizer",
}
"""Options by the names that they had in the version before."""

CHECK_FAILED = 1
BAD_FILE = 3
FAULT = 70
INTERRUPTED = 130
OUTPUT_GONE = 141
_LONGEST_MESSAGE = 4000
_PLAIN_TYPES = {"int range": "a whole number", "int": "a whole number", "float": "a number"}
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
    return re.sub(r"`(\w+)(?:\[0\])?`", lambda found: flags.get(found[1], found[0]), message)


def run(command: Callable[[], object], *, flags: bool = True, traceback: bool = False) -> int:
    """Call `command`; whatever goes wrong becomes one line on stderr and an exit code.

    `flags` is whether the command takes its fields as options, and not from a plan file; with
    `traceback` the line comes below the traceback.
    """
    from .output import open_streams, write_anything

    open_streams()
    write_anything()
    try:
        code = _code_of(command)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return OUTPUT_GONE
    except Exception as error:
        if traceback:
            from traceback import print_exception

            with suppress(OSError):
                print_exception(error)
        return _code_told(error, flags=flags)
    return code


def _code_told(error: Exception, *, flags: bool) -> int:
    """Say in one line what went wrong; return the exit code."""
    if isinstance(error, GgufRopeError):
        _tell(with_flags(str(error)) if flags else str(error))
        return exit_code(error)
    if hasattr(error, "format_message"):  # Typer's: words that are no call of a command
        _tell(_usage(error))
        return 2
    if isinstance(error, OSError):
        place = "the output" if error.filename is None else error.filename
        _tell(f"{place}: {error.strerror or error}")
        if error.filename is None:  # the output itself, perhaps: what is left of it has no place
            _drop_output()
        return BAD_FILE
    if isinstance(error, MemoryError):
        _tell("out of memory")
        return exit_code(BackendError())
    from traceback import extract_tb

    where = extract_tb(error.__traceback__)[-1]
    _tell(
        f"a fault of ggufrope, not of your request: {type(error).__name__} at "
        f"{Path(where.filename).name}:{where.lineno}: {str(error)[:300]}; for a report, keep what "
        "the same command prints with --traceback, and what `ggufrope doctor --json` prints"
    )
    return FAULT


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does: what was begun to be written is undone.

    One that is ignored, as under `nohup`, stays so. Yield what to call when the work is done but
    for a last step: until the end of the block none of them interrupts any more.
    """
    numbers = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
    before = {n: signal.getsignal(n) for n in numbers if n is not None}
    caught = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    interrupt = signal.getsignal(signal.SIGINT)

    def ignore() -> None:
        for number in (signal.SIGINT, *caught):
            signal.signal(number, signal.SIG_IGN)

    for number in caught:
        signal.signal(number, signal.default_int_handler)
    try:
        yield ignore
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
        if interrupt is not None:
            signal.signal(signal.SIGINT, interrupt)


def _code_of(command: Callable[[], object]) -> int:
    """Call `command`; return the code it leaves with.

    Raises BrokenPipeError and KeyboardInterrupt as they are.
    """
    before = sys.stdout
    try:
        code = command()
    except SystemExit as leaving:
        # Typer and Rich answer these themselves: with exit code 1, and without a word.
        if isinstance(leaving.__context__, BrokenPipeError):
            sys.stdout = before
            raise BrokenPipeError from None
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _usage(error: Exception) -> str:
    """Return what Typer says of words that are no call of a command, in one line."""
    if now := _RENAMED.get(getattr(error, "option_name", "")):
        return f"{error.option_name} is {now} now"  # type: ignore[attr-defined]
    message: str = error.format_message()  # type: ignore[attr-defined]
    for typed, plain in _PLAIN_TYPES.items():
        message = message.replace(f"not a valid {typed}.", f"not {plain}")
    message = message[:1].lower() + message[1:].removesuffix(".")
    if message.endswith("?"):  # did you mean …?
        return message
    context = getattr(error, "ctx", None)
    path = "ggufrope" if context is None else context.command_path
    return f"{message}; see `{path} --help`"


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


own_process = False
"""Whether the process is the command's own, as when a person calls it."""


def outlive_aborts() -> None:
    """Let llama.cpp end the command with one line and exit code 5, whatever it does to its process.

    For the commands that load a model in this process. An assertion of it that fails says why.
    What ends a process in another way leaves nobody to say so: on Linux the command goes on in a
    child process from here, and this one waits for it.
    """
    from ggufrope.runtime import library

    library.on_abort = _tell_abort
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # of a debugger, where there is one
    if own_process and sys.platform == "linux":
        _go_on_in_a_child()


def _tell_abort(reason: str) -> None:
    if "RPC" in reason:
        _tell(f"an RPC server is lost, and llama.cpp ended the process: {reason}")
    else:
        _tell(f"llama.cpp ended the process, on what it does not check in a file: {reason}")
    os._exit(exit_code(BackendError()))


def _go_on_in_a_child() -> None:
    """Return in a child process; wait for it in this one, and end as it does."""
    sys.stdout.flush()
    passed_on = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*passed_on, signal.SIGCHLD})
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _end_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    ended, status = 0, 0
    while not ended:
        came = signal.sigwaitinfo({*passed_on, signal.SIGCHLD})
        if came.si_signo in passed_on and came.si_code <= 0:  # a terminal sends to the child too
            os.kill(child, came.si_signo)
        ended, status = os.waitpid(child, os.WNOHANG)
    code = os.waitstatus_to_exitcode(status)
    if code < 0 and -code in passed_on:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(-code, signal.SIG_DFL)
        os.kill(parent, -code)
    if code < 0:
        _tell_crash(-code)
        code = exit_code(BackendError())
    os._exit(code)


def _end_with(parent: int) -> None:
    """Let the system end this process when its parent is killed (man 2 prctl)."""
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(FAULT)


def _tell_crash(number: int) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        print("\r\x1b[K\x1b[?25h", end="", file=sys.stderr)  # what a progress bar left
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        _tell(f"the process was killed ({name}), as the system does where memory runs out")
    else:
        what = (signal.strsignal(number) or "a signal").lower()
        _tell(
            f"llama.cpp ended the process ({name}, {what}), on what it does not check in a file or "
            "a setting"
        )
