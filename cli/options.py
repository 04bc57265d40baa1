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
        help="A path, the first shard of a split model, ollama:NAME or hf:OWNER/REPO/FILE[@REV].",
        show_default=False,
    ),
]
HeaderArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="A path, the first shard of a split model, ollama:NAME, hf:OWNER/REPO/FILE[@REV], or "
        "an https: address; of what is not on disk the header alone is read.",
        show_default=False,
    ),
]
WholeOption = Annotated[
    bool,
    typer.Option(
        "--whole",
        help="Let a server that cannot send parts of a file send it from its start.",
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
LlamaLibOption = Annotated[
    str | None,
    typer.Option(
        "--llama-lib",
        metavar="FOLDER",
        help="Folder of another build of llama.cpp; default: LLAMA_CPP_LIB_PATH, else the one "
        "installed.",
    ),
]
ArchitecturesOption = Annotated[
    str | None,
    typer.Option(
        "--architectures",
        metavar="FILE",
        help="Predict by this table of architectures, or by the one of this llama.cpp commit "
        "(default: that of the installed llama.cpp).",
        show_default=False,
    ),
]
RPC_HELP = "Spread the model over llama.cpp's RPC servers too, on a trusted network only."
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


def predicting(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the option `--architectures`, which puts a table in force before it runs.

    Without it the table is that of the llama.cpp in use, which `--llama-lib` may name.
    """

    @functools.wraps(command)
    def with_table(*, architectures: str | None = None, **arguments: Any) -> None:
        if arguments.get("llama_lib") is not None:
            from ggufrope.runtime.engine import use_llama

            use_llama(arguments["llama_lib"])
        if architectures is not None:
            from ggufrope.rope.architectures import use_table

            use_table(architectures)
        command(**arguments)

    declared = inspect.signature(command, eval_str=True).parameters.values()
    kind = inspect.Parameter.KEYWORD_ONLY
    own = inspect.Parameter("architectures", kind, default=None, annotation=ArchitecturesOption)
    parameters = [*(p.replace(kind=kind) for p in declared), own]
    with_table.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_table.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_table


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
