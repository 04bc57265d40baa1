"""Options that several commands share, and how a dataclass of them becomes parameters.

A command takes `run: RunOptions` instead of twenty arguments; `grouped` shows Typer one
parameter for each field and hands the command the dataclass. A dataclass whose options are declared
elsewhere makes them in `options()` and takes their values by name in `of()`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from .values import completion, guards, tokens

FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="A path, the first shard of a split model, ollama:NAME or hf:OWNER/REPO/FILE.",
        show_default=False,
    ),
]
ServedFileArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="FILE",
        help="A path, the first shard of a split model, ollama:NAME or hf:OWNER/REPO/FILE; none "
        "with --server.",
        show_default=False,
    ),
]
OtherFileArgument = Annotated[
    str, typer.Argument(metavar="OTHER", help="The file to compare with.", show_default=False)
]
ForceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--force",
        metavar="GUARD",
        help="Override a guard by its name; repeatable.",
        autocompletion=completion(guards),
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def option(
    name: str,
    help_: str,
    metavar: str,
    panel: str,
    *,
    known: Callable[[], Iterable[str]] | None = None,
    **more: Any,
) -> Any:
    """Return an option shown in a panel of the help; shells complete it to the `known` words."""
    if known is not None:
        more["autocompletion"] = completion(known)
    return typer.Option(name, metavar=metavar, help=help_, rich_help_panel=panel, **more)


def token_option(name: str, help_: str, panel: str | None = None) -> Any:
    """Return an option that takes a number of tokens, as 16384 or 16k."""
    return typer.Option(
        name, metavar="TOKENS", help=help_, rich_help_panel=panel, parser=tokens(name)
    )


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Flatten the dataclass parameters of `command` into one parameter per option."""
    # Before Python 3.11 get_type_hints hides Annotated in Optional where the default is None.
    declared = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in declared if is_dataclass(p.annotation)}
    options = {name: _options(kind) for name, kind in groups.items()}
    parameters: list[inspect.Parameter] = []
    for parameter in declared:
        parameters.extend(options.get(parameter.name, [parameter]))

    @functools.wraps(command)
    def flat(**arguments: Any) -> None:
        values = {}
        for name, kind in groups.items():
            given = {option.name: arguments.pop(option.name) for option in options[name]}
            values[name] = kind.of(given) if hasattr(kind, "of") else kind(**given)
        command(**arguments, **values)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in parameters}
    return flat


def _options(group: Any) -> list[inspect.Parameter]:
    """Return one parameter per field of a dataclass, or those that it makes itself."""
    if hasattr(group, "options"):
        made: list[inspect.Parameter] = group.options()
        return made
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[field.name],
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(group)
    ]
