"""A bounded run of the benchmark that takes hostile headers all the way in little memory."""

from __future__ import annotations

import sys

import pytest

from benchmarks.fuzz_limits import fuzz, hostile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")


def test_hostile_headers_cost_little_and_end_in_our_errors() -> None:
    reached, faults = fuzz(600)
    assert faults == []
    assert reached.total() == 600
    assert min(reached[word] for word in ("refused", "read", "written")) > 20


def test_a_seed_makes_the_same_input_again() -> None:
    assert hostile(7) == hostile(7)
    assert len({hostile(seed) for seed in range(50)}) == 50
