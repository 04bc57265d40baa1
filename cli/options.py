"""Options that several commands share, and how a dataclass of them becomes parameters.

A command takes `run: RunOptions` instead of twenty arguments; `grouped` shows Typer one
parameter for each field and hands the command the dataclass.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from .values import tokens

FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="A path, the first shard of a split model, ollama:NAME or hf:OWNER/REPO/FILE.",
        show_default=False,
    ),
]
OtherFileArgument = Annotated[
    str, typer.Argument(metavar="OTHER", help="The file to compare with.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def option(name: str, help_: str, metavar: str, panel: str, **more: Any) -> Any:
    """An option shown in a panel of the help."""
    return typer.Option(name, metavar=metavar, help=help_, rich_help_panel=panel, **more)


def token_option(name: str, help_: str, panel: str | None = None) -> Any:
    """An option that takes a number of tokens, as 16384 or 16k."""
    return typer.Option(
        name, metavar="TOKENS", help=help_, rich_help_panel=panel, parser=tokens(name)
    )


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Flatten the dataclass parameters of `command` into one parameter a field."""
    # Before Python 3.11 get_type_hints hides Annotated in Optional where the default is None.
    asked = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in asked if is_dataclass(p.annotation)}
    parameters: list[inspect.Parameter] = []
    for parameter in asked:
        if parameter.name in groups:
            parameters.extend(_field_parameters(groups[parameter.name]))
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def flat(**arguments: Any) -> None:
        values = {
            name: kind(**{field.name: arguments.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        command(**arguments, **values)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in parameters}
    return flat


def _field_parameters(group: type) -> list[inspect.Parameter]:
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
