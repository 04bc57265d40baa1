"""The result of a search as a page, a picture and Markdown, read back from its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ggufrope.errors import RequestError, StorageError
from ggufrope.patching.inspection import read_model
from ggufrope.report.pictures import to_svg
from ggufrope.report.searches import (
    finals_table,
    picture,
    so_far_tables,
    to_html,
    to_markdown,
)
from ggufrope.search.plan import SearchPlan
from ggufrope.search.result import SearchResult
from ggufrope.search.session import (
    RECORD,
    RESULT,
    has_ended,
    read_result,
    read_so_far,
    run_search,
)
from tests.search.standin import ORIGINAL, TARGET, StandInBackend, write_model

pytest.importorskip("jinja2", reason="the page needs jinja2, of the extra 'report'")
pytest.importorskip("vl_convert", reason="charts need vl-convert-python, of the extra 'report'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search."""
    base = tmp_path_factory.mktemp("search")
    plan = SearchPlan(
        target_context=TARGET,
        space="longrope",
        attention="none",
        optimizer="evolution",
        candidates=40,
        finalists=2,
        samples=2,
        haystacks=2,
        screening_samples=1,
        screening_context=512,
        holdout_haystacks=3,
        depths=(0, 100),
    )
    model = read_model(write_model(base / "model.gguf"))
    run_search(model, plan, StandInBackend(), folder=base / "found")
    return base / "found"


@pytest.fixture
def result(folder: Path) -> SearchResult:
    return read_result(folder)


def test_a_result_is_read_back_as_it_was_written(folder: Path, result: SearchResult) -> None:
    assert result.won
    assert result.search == json.loads((folder / RESULT).read_text())["search"]
    assert result.curves[0].name == "searched"
    assert result.rotation.target_context == TARGET


def test_a_folder_without_a_result_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no search"):
        read_result(tmp_path)
    (tmp_path / RECORD).write_bytes((folder / RECORD).read_bytes())
    with pytest.raises(RequestError, match="has not ended: run the same command"):
        read_result(tmp_path)
    (tmp_path / RESULT).write_text('{"schema": 1}')
    with pytest.raises(RequestError, match="file is missing"):
        read_result(tmp_path)
    broken = json.loads((folder / RESULT).read_text()) | {"search": []}
    (tmp_path / RESULT).write_text(json.dumps(broken))
    with pytest.raises(RequestError, match=r"search must be a table, found \[\]"):
        read_result(tmp_path)


def test_what_a_search_judged_is_shown_also_before_it_ends(folder: Path, tmp_path: Path) -> None:
    content = (folder / RECORD).read_bytes()
    lines = content.splitlines(keepends=True)
    (tmp_path / RECORD).write_bytes(b"".join(lines[:3]) + lines[3][:20])
    assert not has_ended(tmp_path)
    assert len(read_so_far(tmp_path)) == 2  # what is being written is not there yet
    tables = so_far_tables(read_so_far(folder))
    assert list(tables)[-1] == "screening"
    assert "holdout · whole prompts" in tables
    for rows in tables.values():
        haystacks = [int(row[1]) for row in rows]
        assert haystacks == sorted(haystacks, reverse=True)
    first, *_ = tables["final"]
    assert first[0].startswith(("yarn ×", "factors"))
    assert first[2].endswith(f"of {4 * int(first[1])}")
    with pytest.raises(RequestError, match="holds no search"):
        read_so_far(tmp_path / "else")
    for broken in (b"", b"[]\n", b'{"schema": 1}\n', lines[0] + b'{"number": 1}\n'):
        (tmp_path / RECORD).write_bytes(broken)
        with pytest.raises(StorageError, match="not a record of a search"):
            read_so_far(tmp_path)


def test_page_and_markdown_end_with_the_command_to_go_on(result: SearchResult) -> None:
    lost = replace(result, won=False, patch_command="ggufrope patch yarn")
    for each, others in ((result, ()), (lost, (lost.searched_patch_command,))):
        html, text = to_html(each), to_markdown(each)
        assert each.patch_command.split()[0] in text
        assert each.patch_command in text
        assert "Not recommended" not in text
        assert ("Not recommended" in html) is bool(others)
        assert html.count("<svg") == 2
    assert "The search wins" in to_html(result)
    assert "Keep YaRN" in to_html(lost)


def test_hostile_names_are_text(result: SearchResult) -> None:
    hostile = replace(
        result,
        file="<script>\x1b",
        curves=(replace(result.curves[0], name="</svg><script>\x07"), *result.curves[1:]),
    )
    html, svg = to_html(hostile), to_svg(picture(hostile))
    for made in (html, svg):
        assert "<script" not in made
        assert not {c for c in made if ord(c) < 32} - {"\n"}
    assert "\\x1b" in html


def test_where_the_finals_were_lost_they_are_what_is_shown(result: SearchResult) -> None:
    lost = replace(result, won=False, holdout=(), short_context=())
    html, text = to_html(lost), to_markdown(lost)
    for made in (html, text):
        assert "against YaRN" in made
        assert "Holdout, " not in made
        assert "whole" not in made
    assert picture(lost)


def test_the_front_is_shown_where_candidates_were_judged_at_two_lengths(
    result: SearchResult,
) -> None:
    assert "front" not in finals_table(result)[0]
    two = replace(result, finals=tuple(replace(each, original_loss=0.25) for each in result.finals))
    heads, rows = finals_table(two)
    assert heads[-3:] == (f"at {TARGET:,}", f"at {ORIGINAL:,}", "front")
    assert [row[-2] for row in rows] == ["0.2500"] * len(rows)
    assert "no finalist is better at one length" in to_html(two)
