"""A user's templates: what is taken, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ggufrope.errors import RequestError, StorageError
from ggufrope.evals.ruler.specs import RULER_TASKS
from ggufrope.evals.ruler.wording import FIELDS, OURS, our_wording, read_templates, wordings_of


def test_ours_obey_the_rules_for_a_users() -> None:
    every: dict[str, Any] = {
        family: {part: getattr(wording, part) for part in FIELDS[family]}
        for family, wording in OURS.items()
    }
    every["fwe"].pop("needle")
    many = {"niah_multivalue": {"prompt": our_wording(RULER_TASKS[6]).prompt}}
    assert wordings_of({**every, **many})["vt"] == OURS["vt"]


def test_a_task_goes_before_its_family() -> None:
    found = wordings_of(
        {"niah": {"prefix": "family"}, "niah_single_2": {"prefix": "task of {query}"}}
    )
    assert found["niah_single_1"].prefix == "family"
    assert found["niah_single_2"].prefix == "task of {query}"
    assert found["niah_single_2"].needle == OURS["niah"].needle
    assert found["cwe"] == OURS["cwe"]


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ([], "expected an object of tasks, found list"),
        ({"needle": {}}, "unknown task 'needle'; expected one of niah, vt"),
        ({"vt": "SET"}, "vt: expected an object of templates, found str"),
        ({"vt": {"question": ""}}, r"vt\.question: unknown template; expected needle"),
        ({"vt": {"prefix": 5}}, r"vt\.prefix: expected a string, found int"),
        ({"vt": {"prefix": "{"}}, r"vt\.prefix: .*write \{\{ and \}\} for braces"),
        ({"vt": {"prefix": "{value}"}}, r"unknown field \{value\}; expected \{query\}"),
        ({"cwe": {"prefix": "{query}"}}, r"unknown field \{query\}; expected none"),
        ({"vt": {"prefix": "{query.real}"}}, r"unknown field \{query\.real\}"),
        ({"vt": {"prefix": "{}"}}, r"unknown field \{\}"),
        ({"vt": {"prefix": "{query:>9}"}}, "a field takes no format"),
        ({"vt": {"prefix": "{query!r}"}}, "a field takes no format"),
        ({"qa_1": {"prompt": "{context}"}}, r"qa_1\.prompt: the field \{query\} is missing"),
    ],
)
def test_invalid_templates_say_where(templates: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        wordings_of(templates)  # type: ignore[arg-type]


def test_every_problem_is_reported() -> None:
    with pytest.raises(RequestError, match=r"vt\.prompt.*cwe\.prompt"):
        wordings_of({"vt": {"prompt": "{context}"}, "cwe": {"prompt": ""}})


def test_a_file_of_templates(tmp_path: Path) -> None:
    path = tmp_path / "templates.json"
    path.write_text(json.dumps({"vt": {"prefix": "A:"}}), encoding="utf-8")
    assert read_templates(path) == {"vt": {"prefix": "A:"}}


@pytest.mark.parametrize(("content", "message"), [("{,", "not JSON"), ('{"x": {}}', "unknown")])
def test_a_file_that_is_none(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "templates.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RequestError, match=rf"templates\.json: .*{message}"):
        read_templates(path)
    with pytest.raises(StorageError, match="cannot read"):
        read_templates(tmp_path / "absent.json")
