"""The scaling options: one for each field of ScalingRequest that has a flag."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_type_hints

import typer

from ggufrope.patching.command import FLAGS
from ggufrope.patching.request import SCHEMES, ScalingRequest

from .errors import OptionError
from .values import completion, schemes, tokens, word

_GROUP = "Scaling"
_SCHEME_HELP = f"{', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}."


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingOptions:
    """The scaling options as given: `parameters` are the fields of ScalingRequest but the scheme,
    which stays a word, as `compare` takes several."""

    scaling: str | None
    parameters: Mapping[str, Any]

    @classmethod
    def options(cls) -> list[inspect.Parameter]:
        """Return the options as the parameters that Typer reads."""
        hints = get_type_hints(ScalingRequest)
        return [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=_annotation(field, hints[field.name]),
                default=False if hints[field.name] is bool else None,
            )
            for field in fields(ScalingRequest)
            if field.name in FLAGS
        ]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ScalingOptions:
        """Take the values of these options."""
        parameters = {name: value for name, value in given.items() if name != "scaling"}
        return cls(scaling=given["scaling"], parameters=MappingProxyType(parameters))

    def request(self) -> ScalingRequest:
        """Return the request: the model as it stands where no scheme is given."""
        scaling: Any = "file"
        if self.scaling is not None:
            scaling = word(self.scaling, "--scaling", SCHEMES)
        return ScalingRequest(scaling=scaling, **self.parameters)


def _annotation(field: Field[Any], hint: Any) -> Any:
    """Return the type of an option and its help, from the field it sets."""
    unit = field.metadata.get("unit")
    kind: Any = str | None
    parser: Any = None
    if hint is bool:
        kind = bool
    elif unit == "tokens":
        kind, parser = int | None, tokens(FLAGS[field.name])
    elif float in get_args(hint):
        kind = float | None
    elif field.name in ("long_factors", "short_factors"):
        parser = _factors
    option = typer.Option(
        FLAGS[field.name],
        metavar=unit and unit.upper(),
        help=_SCHEME_HELP if field.name == "scaling" else _sentence(field.metadata["help"]),
        rich_help_panel=_GROUP,
        show_default=False,
        parser=parser,
        autocompletion=completion(schemes) if field.name == "scaling" else None,
    )
    return Annotated[kind, option]


def _sentence(text: str) -> str:
    """Return the help of a field as the command line shows it."""
    what, mark, default = text.partition("; default: ")
    sentence = what[0].upper() + what[1:]
    return f"{sentence} (default: {default})." if mark else f"{sentence}."


def _factors(text: str) -> str | tuple[float, ...]:
    """Return a file of factors, or the numbers that a JSON array gives."""
    if not text.startswith("["):
        return text
    try:
        numbers = json.loads(text)
        return tuple(float(number) for number in numbers)
    except (ValueError, TypeError):
        raise OptionError(f"{text[:40]}: expected a file, or numbers as in '[1.0, 1.5]'") from None
