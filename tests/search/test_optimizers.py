"""Both optimizers, on a loss whose minimum is known."""

from __future__ import annotations

import numpy as np
import pytest

from ggufrope.errors import RequestError
from ggufrope.patching.rotation import Rotation
from ggufrope.search.optimizers import EvolutionSettings, evolution_within, make_optimizer
from ggufrope.search.spaces import LongRopeSpace, Vector, contains

ROTATION = Rotation(n_rot=16, base=10_000.0, original_context=256, target_context=2048)
SPACE = LongRopeSpace(rotation=ROTATION, attention="free")
GOAL = np.array([1, 1.1, 1.5, 3, 6, 8, 9, 9.5, 1.3])
NAMES = ("evolution", "cma")


def loss(vector: Vector) -> float:
    return float(np.square(np.log(vector / GOAL)).mean())


def run(name: str, evaluations: int, seed: int = 0) -> list[tuple[float, tuple[float, ...]]]:
    optimizer = make_optimizer(name, SPACE, evaluations=evaluations, seed=seed)  # type: ignore[arg-type]
    seen = []
    while vectors := optimizer.ask():
        losses = [loss(vector) for vector in vectors]
        optimizer.tell(vectors, losses)
        seen += [(value, tuple(v.tolist())) for value, v in zip(losses, vectors, strict=True)]
    return seen


@pytest.mark.parametrize(("name", "share"), [("evolution", 0.25), ("cma", 0.05)])
def test_finds_what_the_seeds_do_not_have(name: str, share: float) -> None:
    best = min(value for value, _ in run(name, 400))
    assert best < share * min(loss(seed) for seed in SPACE.seeds())


@pytest.mark.parametrize("name", NAMES)
def test_asks_only_for_vectors_of_the_space_and_no_more_than_planned(name: str) -> None:
    seen = run(name, 150)
    assert 100 < len(seen) <= 150
    assert all(contains(SPACE, np.array(vector)) for _, vector in seen)


@pytest.mark.parametrize("name", NAMES)
def test_is_a_function_of_its_seed(name: str) -> None:
    np.random.seed(1)  # the global generator must not matter
    first = run(name, 100)
    np.random.seed(2)
    assert run(name, 100) == first
    assert run(name, 100, seed=1) != first


def test_evolution_at_full_size_is_the_papers() -> None:
    settings = evolution_within(64 + 40 * 32)
    assert settings == EvolutionSettings(
        population=64, iterations=40, mutations=16, crossovers=16, parents=32, probability=0.3
    )


def test_evolution_begins_with_the_seeds_and_never_asks_twice() -> None:
    seen = run("evolution", 200)
    seeds = [tuple(seed.tolist()) for seed in SPACE.seeds()]
    assert [vector for _, vector in seen[: len(seeds)]] == seeds
    assert len({vector for _, vector in seen}) == len(seen)


@pytest.mark.parametrize("name", NAMES)
def test_too_few_candidates_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="8 or more"):
        make_optimizer(name, SPACE, evaluations=7, seed=0)  # type: ignore[arg-type]
