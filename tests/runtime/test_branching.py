"""The plan that turns branches into batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope.errors import DecodeError, RequestError
from ggufrope.lm import Branch, Splice
from ggufrope.runtime.batch import plan


def test_a_prompt_is_shared_and_the_last_token_is_only_predicted() -> None:
    branch = Branch(prompt=(5, 6), answers=((7,), (8, 9, 10)))
    (group,) = plan([branch], start=100, max_sequences=63, max_cells=50)
    assert [(e.token, e.position, e.sequences, e.output) for e in group.entries] == [
        (5, 100, (1, 2), False),
        (6, 101, (1, 2), True),
        (8, 102, (2,), True),
        (9, 103, (2,), True),
    ]
    first, second = group.candidates
    assert (first.entries, first.tokens) == ((1,), (7,))
    assert (second.entries, second.tokens) == ((1, 2, 3), (8, 9, 10))


def test_a_common_beginning_is_evaluated_once() -> None:
    branches = [
        Branch(prompt=(1, 2, 3), answers=((4, 5, 6), (4, 5, 7), (8,))),
        Branch(prompt=(1, 2, 9), answers=((4, 5),)),
    ]
    (group,) = plan(branches, start=10, max_sequences=63, max_cells=7)
    assert [(e.token, e.position, e.sequences, e.output) for e in group.entries] == [
        (1, 10, (1, 2, 3, 4), False),
        (2, 11, (1, 2, 3, 4), False),
        (3, 12, (1, 2, 3), True),
        (4, 13, (1, 2), True),
        (5, 14, (1, 2), True),
        (9, 12, (4,), True),
        (4, 13, (4,), True),
    ]
    assert [candidate.entries for candidate in group.candidates] == [
        (2, 3, 4),
        (2, 3, 4),
        (2,),
        (5, 6),
    ]


def test_groups_are_split_where_sequences_run_out() -> None:
    branch = Branch(prompt=(1,), answers=((2,), (3,), (4,)))
    groups = list(plan([branch, branch], start=0, max_sequences=2, max_cells=99))
    assert [[(c.branch, c.answer) for c in g.candidates] for g in groups] == [
        [(0, 0), (0, 1)],
        [(0, 2), (1, 0)],
        [(1, 1), (1, 2)],
    ]


def test_groups_are_split_where_cells_run_out() -> None:
    branch = Branch(prompt=(1, 2), answers=((3, 4), (5, 6)))
    groups = list(plan([branch], start=0, max_sequences=63, max_cells=3))
    assert [[entry.token for entry in group.entries] for group in groups] == [[1, 2, 3], [1, 2, 5]]


def test_a_branch_too_large_for_the_cells_is_refused() -> None:
    branch = Branch(prompt=(1, 2, 3), answers=((4, 5),))
    with pytest.raises(DecodeError, match="4 tokens does not fit after 96 tokens"):
        list(plan([branch], start=96, max_sequences=63, max_cells=3))


@pytest.mark.parametrize(
    "branch", [Branch(prompt=(), answers=((1,),)), Branch(prompt=(1,), answers=((),))]
)
def test_an_empty_prompt_or_answer_is_refused(branch: Branch) -> None:
    with pytest.raises(RequestError, match="branch 0"):
        list(plan([branch], start=0, max_sequences=63, max_cells=99))


@pytest.mark.parametrize(
    "splices",
    [
        (Splice(position=5, tokens=()),),
        (Splice(position=5, tokens=(1,)), Splice(position=5, tokens=(1,))),
        (Splice(position=9, tokens=(1, 2)),),
    ],
)
def test_splices_outside_the_trunk_or_over_each_other_are_refused(
    splices: tuple[Splice, ...],
) -> None:
    branch = Branch(prompt=(1,), answers=((2,),), splices=splices)
    with pytest.raises(RequestError, match="not after position"):
        list(plan([branch], start=10, max_sequences=63, max_cells=99))


def test_a_splice_takes_cells_once_for_all_answers() -> None:
    branch = Branch(prompt=(1,), answers=((2,), (3,)), splices=(Splice(position=4, tokens=(7, 8)),))
    (group,) = plan([branch], start=10, max_sequences=63, max_cells=3)
    assert [(fork.splices, fork.sequences) for fork in group.forks] == [(branch.splices, (1, 2))]
    with pytest.raises(DecodeError, match="3 tokens does not fit after 10 tokens"):
        list(plan([branch], start=10, max_sequences=63, max_cells=2))


tokens = st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple)
views = st.sampled_from(
    [
        (),
        (Splice(position=1, tokens=(9, 9)),),
        (Splice(position=0, tokens=(8,)), Splice(position=5, tokens=(8, 9))),
    ]
)
branches = st.lists(
    st.builds(
        Branch, prompt=tokens, answers=st.lists(tokens, max_size=4).map(tuple), splices=views
    ),
    max_size=6,
)


@given(branches, st.integers(1, 5), st.integers(12, 40))
def test_every_answer_is_evaluated_once_after_its_own_prompt(
    branches: list[Branch], max_sequences: int, max_cells: int
) -> None:
    planned = []
    for group in plan(branches, start=7, max_sequences=max_sequences, max_cells=max_cells):
        spliced = sum(len(splice.tokens) for fork in group.forks for splice in fork.splices)
        assert len(group.entries) + spliced <= max_cells
        view = {sequence: fork.splices for fork in group.forks for sequence in fork.sequences}
        assert len(view) == len(group.candidates)
        assert len(group.candidates) <= max_sequences
        paths: set[tuple[object, ...]] = set()
        for sequence, candidate in enumerate(group.candidates, 1):
            planned.append((candidate.branch, candidate.answer))
            branch = branches[candidate.branch]
            answer = branch.answers[candidate.answer]
            assert view[sequence] == branch.splices
            own = [entry for entry in group.entries if sequence in entry.sequences]
            assert [entry.token for entry in own] == [*branch.prompt, *answer[:-1]]
            assert [entry.position for entry in own] == list(range(7, 7 + len(own)))
            assert [group.entries[i] for i in candidate.entries] == own[-len(answer) :]
            assert all(entry.output for entry in own[-len(answer) :])
            read = [entry.token for entry in own]
            paths |= {(branch.splices, *read[: i + 1]) for i in range(len(own))}
        assert len(group.entries) == len(paths)
    assert planned == [
        (b, a) for b, branch in enumerate(branches) for a in range(len(branch.answers))
    ]
