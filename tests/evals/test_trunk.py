"""Places of a grid, and what prompts share."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.evals.multikey import lay_out
from ggufrope.evals.needle import NEEDLE
from ggufrope.evals.trunk import Lanes, Trunk, common_prefix
from ggufrope.runtime.fake import FakeContext, FakeModel
from tests.evals.bench import Bench


def test_one_length_has_a_place_for_every_depth() -> None:
    layout = lay_out([1000], [0, 50, 100], fact_tokens=20, spacing=64)
    assert [place.target for place in layout.places] == [0, 490, 980]
    assert [place.ends_length for place in layout.places] == [None, None, 0]
    assert layout.of == ((0, 1, 2),)


def test_places_that_coincide_are_shared() -> None:
    layout = lay_out([1000, 2020], [0, 50, 100], fact_tokens=20, spacing=64)
    # The middle of 2020 is at 1000, beside the end of the shorter length at 980.
    assert [place.target for place in layout.places] == [0, 490, 980, 2000]
    assert layout.of == ((0, 1, 2), (0, 2, 3))


def test_depths_keep_their_order_in_the_answer() -> None:
    layout = lay_out([1000], [100, 0], fact_tokens=20, spacing=64)
    assert [layout.places[i].target for i in layout.of[0]] == [980, 0]


@given(
    budgets=st.sets(st.integers(30, 20_000), min_size=1, max_size=8),
    depths=st.sets(st.floats(0, 100), min_size=1, max_size=12),
    spacing=st.integers(1, 200),
)
def test_every_cell_has_a_place_near_and_inside(
    budgets: set[int], depths: set[float], spacing: int
) -> None:
    fact = 20
    ordered, wanted = sorted(budgets), sorted(depths)
    layout = lay_out(ordered, wanted, fact_tokens=fact, spacing=spacing)
    targets = [place.target for place in layout.places]
    apart = max(spacing, fact)
    assert all(b - a >= apart for a, b in pairwise(targets))
    for budget, row in zip(ordered, layout.of, strict=True):
        for depth, place in zip(wanted, row, strict=True):
            assert 0 <= targets[place] <= budget - fact
            assert abs(targets[place] - (budget - fact) * depth / 100) <= apart + 0.5


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix_is_the_longest(a: list[int], b: list[int]) -> None:
    shared = common_prefix(a, b)
    assert a[:shared] == b[:shared]
    assert a[: shared + 1] != b[: shared + 1] or shared == len(a) == len(b)


@pytest.mark.parametrize("mode", ["whole", "spliced"])
def test_lanes_answer_as_one_does_and_their_tokens_are_planned(mode: Any) -> None:
    """Bench checks that progress comes to what was planned."""
    settings: dict[str, Any] = {"mode": mode, "depths": 5, "samples": 2}
    one, three = Bench(horizon=300), Bench(horizon=300)
    three.model.lanes = 3
    found = three.run(NEEDLE, contexts=(256, 512), **settings)
    assert found == one.run(NEEDLE, contexts=(256, 512), **settings)
    assert (len(one.contexts), len(three.contexts)) == (1, 3)
    assert three.tokens > one.tokens  # each lane evaluates the haystack for itself


def test_an_error_in_a_lane_reaches_the_caller() -> None:
    model = FakeModel()

    def ask(trunk: Trunk, item: int) -> int:
        if item == 3:
            raise ValueError("item 3")
        return item

    with Lanes(lambda n_ctx: FakeContext(model, n_ctx=n_ctx), 64, lanes=2) as lanes:
        answers = lanes.map(ask, range(6))
        assert [next(answers) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="item 3"):
            next(answers)
