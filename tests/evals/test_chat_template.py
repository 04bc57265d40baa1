"""Templates of strangers: as transformers renders them, and no longer than they may take."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ggufrope.errors import MissingDependencyError
from ggufrope.evals.chat_template import CPU_SECONDS, MAX_BYTES, Rendering, render


def rendered(template: str, **variables: object) -> Rendering:
    (only,) = render(template, [variables])
    return only


def test_the_environment_is_that_of_transformers() -> None:
    template = """\
    {% for number in numbers %}
      {% if number == 2 %}{% continue %}{% endif %}
      {% if number > 3 %}{% break %}{% endif %}
{{ number }},
    {% endfor %}
{{ {'<b>': 'é', 'a': none} | tojson }} {{ [1] | tojson(indent=1) }} {{ missing }}!
{% generation %}{{ strftime_now('%Y-%m-%d') }}{% endgeneration %}
"""
    made = rendered(template, numbers=[1, 2, 3, 4])
    assert made.text == '1,\n3,\n{"<b>": "é", "a": null} [\n 1\n] !\n2024-07-26'


def test_each_rendering_fails_for_itself() -> None:
    template = "{% if bad %}{{ raise_exception('not so') }}{% endif %}fine"
    assert render(template, [{"bad": False}, {"bad": True}]) == (
        Rendering(text="fine"),
        Rendering(error="TemplateError not so"),
    )


HOSTILE = {
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a huge range": "{% for i in range(1000000000) %}{% endfor %}",
    "a huge number": "{{ 10 ** (10 ** 10) }}",
    "a huge string": "{{ 'x' * 10000000000 }}",
    "a huge list": "{{ ([0] * 10000000000) | length }}",
    "a huge field": "{{ '{:>10000000000}'.format('x') }}",
    "much output": "{% for i in range(90000) %}{{ 'many words ' }}{% endfor %}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "a string that doubles": "{% set ns = namespace(s='x') %}{% for i in range(99) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "deep nesting": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "deep lists": "{{ " + "[" * 5_000 + "]" * 5_000 + " }}",
    "deep blocks": "{% if 1 %}" * 20_000 + "{% endif %}" * 20_000,
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}",
    "a change of what it is given": "{{ messages.append(1) }}",
    "no template": "{% if %}",
    "an unknown tag": "{% exec 'x' %}",
    "half a character": r"{{ '\ud800' }}",
    "too long": "x" * (MAX_BYTES + 1),
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_end_in_one_line(template: str) -> None:
    began = time.monotonic()
    made = rendered(template, messages=[{"role": "user", "content": "x"}])
    assert made.text is None
    assert made.error
    assert len(made.error) <= 200
    assert made.error.isprintable()
    assert time.monotonic() - began < 20 * CPU_SECONDS  # the machine may be busy


def test_without_jinja_the_missing_part_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jinja2.py").write_text("raise ImportError", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"jinja2: pip install 'ggufrope\[llama\]'"):
        rendered("any")


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "(messages | attr('__class__')).__name__",
        "raise_exception.__globals__",
        "strftime_now.__self__.__class__",
        "self.__init__.__globals__",
        "namespace.__init__.__globals__",
        "lipsum.__globals__['os'].environ",
        "'{0.__class__.__init__.__globals__}'.format(messages)",
        "'{m.__class__}'.format_map({'m': messages})",
        "(messages | map(attribute='__class__') | list)[0].__name__",
        "cycler.__init__.__globals__.os",
    ],
)
def test_the_insides_of_python_are_out_of_reach(expression: str) -> None:
    made = rendered(f"{{{{ {expression} }}}}", messages=["x"])
    assert not made.text


def test_a_template_of_the_longest_length_is_read() -> None:
    made = rendered("{#" + "x" * (MAX_BYTES - 6) + "#}ok")
    assert made.text == "ok"
