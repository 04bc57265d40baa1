"""The words around a RULER-style task: ours, or a user's from a JSON file.

The structure is RULER's: an instruction, the context, the question, and an answer prefix that
restates the question, so that the answer comes next. The wording is our own, and
scores are comparable with published ones only as far as that allows.

A file of templates holds, for tasks or whole families by name, any of `needle`, `prompt` and
`prefix`, with the fields of `FIELDS` in braces:

    {"niah_single_1": {"prompt": "Remember: {context}\\nWhat is it for {query}?"}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter

from ggufrope._files import read_json
from ggufrope.errors import RequestError
from ggufrope.evals.ruler.specs import BY_NAME, Family, RulerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """Templates of a task: `needle` is one fact, document or word of the context, `prompt` holds
    the context and the question, and `prefix` begins the answer."""

    needle: str
    prompt: str
    prefix: str


FIELDS: dict[Family, dict[str, tuple[str, ...]]] = {
    "niah": {
        "needle": ("kind", "key", "value"),
        "prompt": ("kind", "context", "query"),
        "prefix": ("kind", "query"),
    },
    "vt": {
        "needle": ("name", "value"),
        "prompt": ("context", "query"),
        "prefix": ("query",),
    },
    "cwe": {"needle": ("number", "word"), "prompt": ("context",), "prefix": ()},
    "fwe": {"needle": (), "prompt": ("context",), "prefix": ()},
    "qa": {
        "needle": ("number", "document"),
        "prompt": ("context", "query"),
        "prefix": ("query",),
    },
}
"""The fields of each template; a prompt and a needle must have all of them except `kind`."""

OURS: dict[Family, Wording] = {
    "niah": Wording(
        needle=" The secret {kind} of the {key} is {value}.",
        prompt=(
            "Somewhere in the following text a secret {kind} is given away. Remember it, for you "
            "will be asked for it.\n{context}\n"
            "Question: Which secret {kind} of {query} does the text give away?\n"
        ),
        prefix="Answer: The secret {kind} of {query} in the text is",
    ),
    "vt": Wording(
        needle=" SET {name} = {value}.",
        prompt=(
            "The following text sets variables, some of them to the value of another. Follow what "
            "each comes to.\n{context}\n"
            "Question: Which variables come to the value {query}?\n"
        ),
        prefix="Answer: The variables that come to the value {query} are",
    ),
    "cwe": Wording(
        needle="{number}. {word}",
        prompt=(
            "In the following numbered list some words come up more often than the others. "
            "Remember those.\n{context}\n"
            "Question: Which 10 words of the list come up most often?\n"
        ),
        prefix="Answer: The 10 words that come up most often are:",
    ),
    "fwe": Wording(
        needle="",
        prompt=(
            "The following text is in code. Count how often each coded word comes up, and leave "
            "the dots out.\n{context}\n"
            "Question: Which three coded words come up most often?\n"
        ),
        prefix="Answer: The three coded words that come up most often are:",
    ),
    "qa": Wording(
        needle="Document {number}:\n{document}",
        prompt=(
            "Answer the question from the documents, in a few words and nothing else.\n\n"
            "{context}\n\n"
            "Question: {query}\n"
        ),
        prefix="Answer:",
    ),
}
MANY = Wording(
    needle=OURS["niah"].needle,
    prompt=(
        "Somewhere in the following text secret {kind}s are given away. Remember them, for you "
        "will be asked for them.\n{context}\n"
        "Question: Which are all the secret {kind}s of {query} that the text gives away?\n"
    ),
    prefix="Answer: The secret {kind}s of {query} in the text are",
)
"""Our wording of questions about more than one value."""


def our_wording(spec: RulerSpec) -> Wording:
    """Return the wording of a task where a user gives none."""
    many = spec.family == "niah" and spec.values * spec.queries > 1
    return MANY if many else OURS[spec.family]


def wordings_of(templates: Mapping[str, Mapping[str, str]]) -> dict[str, Wording]:
    """Return the wording of every task: ours, replaced by a user's templates where there are some.

    A task's templates take precedence over its family's. Raises RequestError naming every problem.
    """
    problems = tuple(_problems(templates))
    if problems:
        raise RequestError("templates: " + "; ".join(problems))
    return {
        name: replace(
            our_wording(spec), **{**templates.get(spec.family, {}), **templates.get(name, {})}
        )
        for name, spec in BY_NAME.items()
    }


def read_templates(path: Path) -> dict[str, dict[str, str]]:
    """Return the templates in a JSON file.

    Raises StorageError where it cannot be read, RequestError where a template is not valid.
    """
    content = read_json(path)
    try:
        wordings_of(content)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None
    return content  # type: ignore[no-any-return]


def _problems(templates: object) -> Iterator[str]:
    if not isinstance(templates, Mapping):
        yield f"expected an object of tasks, found {type(templates).__name__}"
        return
    for name, parts in templates.items():
        family = BY_NAME[name].family if name in BY_NAME else name
        if family not in FIELDS:
            known = ", ".join((*FIELDS, *BY_NAME))
            yield f"unknown task {name!r}; expected one of {known}"
        elif not isinstance(parts, Mapping):
            yield f"{name}: expected an object of templates, found {type(parts).__name__}"
        else:
            for part, template in parts.items():
                yield from _template_problems(f"{name}.{part}", FIELDS[family], part, template)


def _template_problems(
    where: str, fields: Mapping[str, tuple[str, ...]], part: str, template: object
) -> Iterator[str]:
    if part not in fields:
        yield f"{where}: unknown template; expected {', '.join(fields)}"
        return
    if not isinstance(template, str):
        yield f"{where}: expected a string, found {type(template).__name__}"
        return
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        yield f"{where}: {error}; write {{{{ and }}}} for braces"
        return
    used = {field for _, field, _, _ in parsed if field is not None}
    if any(spec or conversion for _, _, spec, conversion in parsed):
        yield f"{where}: a field takes no format"
    for field in sorted(used - set(fields[part])):
        expected = ", ".join(f"{{{name}}}" for name in fields[part]) or "none"
        yield f"{where}: unknown field {{{field}}}; expected {expected}"
    if part != "prefix":
        for field in fields[part]:
            if field not in used and field != "kind":
                yield f"{where}: the field {{{field}}} is missing"
