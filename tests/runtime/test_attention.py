"""Which pairs of cache types a build runs, by what the build says; and what the machine can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufrope.runtime import library, machine
from ggufrope.runtime.attention import Attention, PairSupport, compiled_pairs, slow_pairs

DEFAULT = "CUDA : ARCHS = 900 | USE_GRAPHS = 1 | FA_QUANTS = q4_0-q4_0,q8_0-q8_0,f16-f16 | CPU : "


def test_a_build_says_which_pairs_it_was_compiled_for() -> None:
    assert set(compiled_pairs(DEFAULT) or ()) == {
        ("q4_0", "q4_0"),
        ("q8_0", "q8_0"),
        ("f16", "f16"),
    }
    one = compiled_pairs("CUDA : FA_QUANTS = q8_0-q4_0 | ")
    assert set(one or ()) == {("q8_0", "q4_0"), ("f16", "f16")}


@pytest.mark.parametrize("text", ["CUDA : FA_QUANTS = all | CPU : AVX = 1 |", "CPU : AVX = 1 |"])
def test_all_pairs_and_a_build_that_does_not_say_are_no_limit(text: str) -> None:
    assert compiled_pairs(text) is None


def test_a_pair_is_slow_where_a_gpu_hands_it_to_the_cpu() -> None:
    pairs: tuple[tuple[str, str, Attention], ...] = (
        ("CUDA0", "f16", "converted"),
        ("CUDA0", "q4_0", "native"),
        ("CUDA0", "iq4_nl", "cpu"),
        ("RPC0", "q8_0", "unknown"),
        ("CPU", "q5_0", "cpu"),
    )
    support = tuple(
        PairSupport(device=device, type_k=k, type_v="q4_0", runs=runs) for device, k, runs in pairs
    )
    assert slow_pairs(support) == {("iq4_nl", "q4_0")}


@pytest.mark.llama
def test_a_build_made_here_uses_what_this_cpu_has() -> None:
    able = machine.cpu_features()
    if able is None:
        pytest.skip("this system has no /proc/cpuinfo")
    built = machine.built_features(library.versions().system_info)
    assert built
    assert built <= able


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("processor\t: 0\nflags\t\t: fpu pni avx2 amx_int8\n", {"SSE3", "AVX2", "AMX_INT8"}),
        ("Features\t: fp asimd asimddp i8mm\n", {"NEON", "DOTPROD", "MATMUL_INT8"}),
    ],
)
def test_the_abilities_of_a_cpu_are_read(text: str, features: set[str], tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert set(machine.cpu_features(tmp_path / "cpuinfo") or ()) == features


def test_a_system_that_does_not_say_is_unknown(tmp_path: Path) -> None:
    assert machine.cpu_features(tmp_path / "none") is None
    (tmp_path / "cpuinfo").write_text("processor: 0\n")
    assert machine.cpu_features(tmp_path / "cpuinfo") is None


def test_the_features_of_the_cpu_are_not_those_of_other_backends() -> None:
    text = "CUDA : ARCHS = 900 | FMA = 1 | CPU : AVX2 = 1 | LLAMAFILE = 1 | RPC : SSE3 = 1 | "
    assert machine.built_features(text) == {"AVX2"}
