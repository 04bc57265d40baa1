"""A bounded run of the benchmark that takes hostile headers all the way in little memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import fuzz_limits
from benchmarks.fuzz_limits import fuzz, hostile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")


def test_hostile_headers_cost_little_and_end_in_our_errors() -> None:
    (answer,) = fuzz(600)
    assert answer["faults"] == []
    assert sum(answer["reached"].values()) == 600
    assert min(answer["reached"][word] for word in ("refused", "read", "written")) > 20


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_limits, "BATCH", 10)
    log = tmp_path / "log.jsonl"
    first = fuzz(20, log=log)
    lines = log.read_text().splitlines()
    log.write_text(lines[0] + "\n" + lines[1][:40])  # as a kill leaves it
    again = fuzz(30, log=log)
    assert [answer["first"] for answer in again] == [0, 10, 20]
    assert again[0] == first[0]
    assert len(log.read_text().splitlines()) == 3


def test_a_seed_makes_the_same_input_again() -> None:
    assert hostile(7) == hostile(7)
    assert len({hostile(seed) for seed in range(50)}) == 50
