"""`ggufrope advise`: the order of methods, and the cache types that the model runs with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fixtures.make import build

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Call


def test_yarn_comes_first_with_what_was_measured(cli: Call, tmp_path: Path) -> None:
    (path,) = build("qwen2", tmp_path / "model.gguf")
    outcome = cli("advise", path, "--target-ctx", 512)
    assert outcome.code == 0
    assert "1. YaRN   risk in short prompts: low" in outcome.out
    assert "measured on a small model at 2 times: 100% of needles recalled" in outcome.out
    assert f"$ ggufrope compare {path} --target-ctx 512 --scaling none,yarn" in outcome.out
    assert outcome.out.count("$ llama-server") == 1  # of the first; the others go on alike


def test_rows_say_the_risk_and_what_a_pair_needs(cli: Call, tmp_path: Path) -> None:
    (path,) = build("qwen2", tmp_path / "model.gguf")
    outcome = cli("advise", path, "--target-ctx", 512)
    assert "risk of loss" in outcome.out
    assert "q8_0, q8_0/q4_0, q4_0: needs flash attention" in outcome.out
    assert "q8_0/q4_0: may be slow on CUDA builds" in outcome.out
    rows = cli("advise", path, "--target-ctx", 512, "--json").json["memory"]
    assert [(row["k_type"], row["v_type"], row["risk"]) for row in rows] == [
        ("f16", "f16", "none"),
        ("q8_0", "q8_0", "low"),
        ("q8_0", "q4_0", "moderate"),
        ("q4_0", "q4_0", "high"),
    ]
    assert rows[0]["notes"] == []
    assert rows[2]["total_bytes"] == sum(
        rows[2][part] for part in ("weight_bytes", "kv_bytes", "compute_bytes")
    )


@pytest.mark.parametrize(
    ("architecture", "sizes", "expected"),
    [
        ("stablelm", {"width": 160, "head_size": 80, "kv_heads": 2, "rotary": 20}, ["f16"]),
        ("llama", {"head_size": 100, "heads": 8, "kv_heads": 8}, ["f16"]),
        ("llama", {"head_size": 96}, ["f16", "q8_0", "q8_0/q4_0", "q4_0"]),
        ("deepseek2", {}, ["f16", "q8_0", "q4_0"]),
    ],
)
def test_only_pairs_that_llama_cpp_runs_are_listed(
    cli: Call, tmp_path: Path, architecture: str, sizes: dict[str, Any], expected: list[str]
) -> None:
    (path,) = build(architecture, tmp_path / "model.gguf", **sizes)
    rows = cli("advise", path, "--target-ctx", 512, "--json").json["memory"]
    pairs = [
        row["k_type"] if row["k_type"] == row["v_type"] else f"{row['k_type']}/{row['v_type']}"
        for row in rows
    ]
    assert pairs == expected
