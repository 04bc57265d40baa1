"""Renders the chat template of a file: hostile text, in a sandbox and in a process of its own.

Jinja's sandbox keeps a template away from Python's objects and files. Nothing inside a process
bounds the time and memory that loops, long strings and deep nesting take, so the template is
compiled and rendered in a child process, which the operating system ends at its limits.

The environment is that of transformers: the same options, globals and `tojson`, and the block
`generation`. One thing differs: the date is always the same, so that prompts are.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ggufrope.errors import MissingDependencyError

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_BYTES = 1_000_000
"""Of a template: published ones are below 30,000."""
MAX_CHARACTERS = 100_000
"""Of what a template makes of one short message."""
CPU_SECONDS = 2
"""For the renderings of one template, which take milliseconds."""
WALL_SECONDS = 60
"""For a machine that is busy, or counts no CPU time."""
MEMORY_BYTES = 1 << 30
_MAX_REASON = 200
_TODAY = datetime(2024, 7, 26)
"""The date that Llama's templates have where no clock is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """What a template made of some variables: `text`, or None and the `error`."""

    text: str | None = None
    error: str | None = None


def render(template: str, every: Sequence[dict[str, Any]]) -> tuple[Rendering, ...]:
    """Render a template with each set of variables (of JSON's types): `messages` and so on.

    Raises MissingDependencyError without jinja2. Whatever goes wrong in the template is the error
    of a rendering, or of all.
    """
    size = len(template.encode("utf-8", "replace"))
    if size > MAX_BYTES:
        return (Rendering(error=f"it has {size} bytes, at most {MAX_BYTES} are read"),) * len(every)
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"from {__name__} import main; main()"],
            input=json.dumps([template, every]).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return (Rendering(error=f"it does not end within {WALL_SECONDS} seconds"),) * len(every)
    if done.returncode == _NO_JINJA:
        raise MissingDependencyError("chat templates need jinja2: pip install 'ggufrope[llama]'")
    if done.returncode != 0:
        limits = f"{CPU_SECONDS} seconds of CPU time or {MEMORY_BYTES >> 20} MiB of memory"
        ended = f"exit code {done.returncode}"
        return (Rendering(error=f"it takes more than {limits} ({ended})"),) * len(every)
    return tuple(Rendering(**plain) for plain in json.loads(done.stdout))


# In the child process ---------------------------------------------------------------------------

_NO_JINJA = 3


def main() -> None:
    """Read a template with sets of variables from standard input, and write the renderings."""
    template, every = json.load(sys.stdin)
    try:
        environment = _environment()
    except ImportError:
        raise SystemExit(_NO_JINJA) from None
    _limit()
    made = [_rendered(environment, template, variables) for variables in every]
    json.dump(made, sys.stdout)


def _limit() -> None:
    with suppress(ImportError):  # not on Windows, where only the clock ends the process
        import resource

        for kind, most in (
            (resource.RLIMIT_CPU, math.ceil(time.process_time()) + CPU_SECONDS),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_AS, MEMORY_BYTES),
        ):
            hard = resource.getrlimit(kind)[1]
            limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
            with suppress(ValueError):  # macOS bounds no address space
                resource.setrlimit(kind, (limit, limit))


def _rendered(environment: Environment, template: str, variables: dict[str, Any]) -> dict[str, str]:
    text = ""
    try:
        for piece in environment.from_string(template).generate(variables):
            text += piece
            if len(text) > MAX_CHARACTERS:
                return {"error": f"more than {MAX_CHARACTERS} characters come of one message"}
        text.encode()  # an escape may make half of a character
    except Exception as error:
        reason = " ".join((type(error).__name__, *str(error).split()))
        return {"error": reason[:_MAX_REASON]}
    return {"text": text}


def _environment() -> Environment:
    """Return the environment in which transformers renders chat templates."""
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block that marks what an assistant generates, for training: its body is output."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _TODAY.strftime
    return environment
