"""A list of edges, and questions for the parents of a node and for the nodes at two steps.

As in GraphWalks (OpenAI, 2025).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from random import Random

from ggufrope.evals.facts import NOUNS
from ggufrope.evals.puzzles.puzzle import Group, Puzzle, unused

_NODES, _CHILDREN, _ASKED_NODES = 12, 2, 4
_NODE_TOKENS = 32
_TITLE = re.compile(r"\A[\s*_#]*nodes[*_]*:[*_]*", re.IGNORECASE)


def graph_walks(rng: Random) -> Iterator[Group]:
    """Yield a directed graph at a time and questions about it, without end."""
    names = unused(rng, NOUNS)
    while True:
        nodes = [next(names) for _ in range(_NODES)]
        children = {
            node: rng.sample([other for other in nodes if other != node], _CHILDREN)
            for node in nodes
        }
        edges = [(node, child) for node in nodes for child in children[node]]
        rng.shuffle(edges)
        parents = {node: {a for a, b in edges if b == node} for node in nodes}
        puzzles = []
        for node in rng.sample([node for node in nodes if parents[node]], _ASKED_NODES):
            puzzles.append(_walk(f"Which nodes have an edge to {node}?", parents[node]))
        for node in rng.sample(nodes, _ASKED_NODES):
            near = {node, *children[node]}
            far = {b for a in children[node] for b in children[a]} - near
            if far:
                question = f"Which nodes are reached from {node} in two steps, and not in fewer?"
                puzzles.append(_walk(question, far))
        yield Group(pieces=tuple(f"\nEdge: {a} -> {b}\n" for a, b in edges), puzzles=tuple(puzzles))


def _walk(question: str, nodes: set[str]) -> Puzzle:
    return Puzzle(
        key=question,
        question=(
            'The lines above that begin with "Edge:" are the edges of a directed graph, each from '
            f"one node to another. {question} Answer with their names in one line, separated by "
            "commas, and nothing else."
        ),
        prefix=" Nodes:",
        answer=", ".join(sorted(nodes)),
        grade=lambda output: _grade_set(_TITLE.sub("", output), nodes),
        output_tokens=_NODE_TOKENS,
    )


def _grade_set(output: str, expected: set[str]) -> Mapping[str, float]:
    """Return whether the names that follow are the expected set, and their F1 score: those of the
    first line, or of a list with a line for each."""
    listed = re.match(r"\s*\n((?:[ \t]*(?:\d+[.)]|[-*])[ \t]+\S.*\n?)+)", output)
    if listed:
        names = re.sub(r"(?m)^[ \t]*(?:\d+[.)]|[-*])", ",", listed[1])
    else:
        names = output.strip().partition("\n")[0]
    words = re.split(r",|\band\b", names)
    named = {word.strip(" .*`'\"[]\n").lower() for word in words} - {""}
    hits = len(named & expected)
    return {"exact": float(named == expected), "f1": 2 * hits / (len(named) + len(expected))}
