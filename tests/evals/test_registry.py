"""Every task of a plan is registered, and keeps the contract."""

from __future__ import annotations

from typing import get_args

import pytest

from ggufrope.errors import RequestError
from ggufrope.evals.registry import TASKS
from ggufrope.evals.task import (
    DEFAULT_DEPTHS,
    RulerSettings,
    TaskName,
    TaskSettings,
    carried_out,
)
from tests.evals.bench import cells_of


def test_every_name_of_a_plan_has_its_task() -> None:
    assert (*TASKS, "kv") == get_args(TaskName)
    assert carried_out(get_args(TaskName)) == tuple(TASKS)
    assert set(carried_out(("kv",))) < set(TASKS)
    assert all(task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize("name", TASKS)
def test_cells_are_distinct_and_shortest_first(name: TaskName) -> None:
    cells = cells_of(TASKS[name], TaskSettings(depths=3, samples=2), (2048, 512, 1024), 256)
    assert cells
    assert len(set(cells)) == len(cells)
    lengths = [cell.context_tokens for cell in cells]
    assert lengths == sorted(lengths)
    assert TASKS[name].tokens(TaskSettings(depths=3, samples=2), cells) > 0


def test_a_comparison_holds_two_contexts_open() -> None:
    two = {name for name, task in TASKS.items() if task.contexts_at_once == 2}
    assert two == {"divergence", "rounding", "short-context"}


def test_depths_are_ten_percent_apart_by_default() -> None:
    assert DEFAULT_DEPTHS == 11
    assert TaskSettings().depth_percents == tuple(float(p) for p in range(0, 101, 10))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": 0}, "depths 0 must be 1 or more"),
        ({"depths": ()}, "depths is empty"),
        ({"depths": (50, 101)}, "depth 101 is not a percentage"),
        ({"samples": 0}, "samples 0 must be 1 or more"),
        ({"samples": 0, "chunks": 0}, "samples 0 must be 1 or more; chunks 0 must be 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        TaskSettings(**settings)  # type: ignore[arg-type]


def test_the_files_of_the_settings() -> None:
    ruler = RulerSettings(squad="s.json", templates="t.json")
    assert TaskSettings(text="a.txt", ruler=ruler).setting_files == ("a.txt", "s.json", "t.json")
