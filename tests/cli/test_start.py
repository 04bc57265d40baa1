"""Long work: its lengths where nobody names them, the folder of its results, and what it says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ggufrope_cli.progress import plain_lines

from fixtures.make import build
from ggufrope.runs.store import RunStore
from tests.cli.conftest import Call

QUICK = (
    *("--depths", "2", "--samples", "1", "--whole-prompts", "0", "--no-control"),
    *("--haystack", "noise", "--threads", "1", "--allow-undecided"),
)


def contexts(folder: Path) -> tuple[int, ...]:
    with RunStore(folder) as store:
        return store.plan.contexts


@pytest.mark.llama
def test_lengths_that_nobody_names_go_up_to_the_context_of_the_file(
    cli: Call, nano: Path, tmp_path: Path
) -> None:
    assert cli("validate", nano, *QUICK).code == 0
    assert contexts(Path("runs/nano-1")) == (128, 256)
    scaled = tmp_path / "scaled.gguf"
    assert cli("patch", nano, "-o", scaled, "--scaling", "yarn", "--factor", 3).code == 0
    assert cli("validate", scaled, *QUICK).code == 0
    assert contexts(Path("runs/scaled-1")) == (256, 512, 768)


@pytest.mark.llama
@pytest.mark.parametrize("reach", [("--target-ctx", "1k"), ("--factor", "4")])
def test_lengths_of_a_comparison_go_up_to_its_target(
    cli: Call, nano: Path, reach: tuple[str, str]
) -> None:
    cli("compare", nano, "--scaling", "yarn", *reach, *QUICK)
    assert contexts(Path("runs/nano-1")) == (256, 512, 1024)


def test_a_comparison_that_reaches_for_nothing_asks_for_a_length(cli: Call, nano: Path) -> None:
    outcome = cli("compare", nano, "--scaling", "none,yarn")
    assert outcome.code == 2
    assert "missing --ctx, such as 8k,16k; or --target-ctx" in outcome.err
    assert not Path("runs").exists()


@pytest.mark.llama
def test_the_results_of_each_command_are_kept_and_named(cli: Call, nano: Path) -> None:
    for number in (1, 2):
        outcome = cli("validate", nano, "--ctx", "256", *QUICK)
        folder = Path(f"runs/nano-{number}")
        assert f"Results: {folder} · as a page: ggufrope report {folder} --html" in outcome.err
        with RunStore(folder) as store:
            assert len(store.results()) == 2
    assert cli("report", "runs/nano-2").code == 0


@pytest.mark.llama
def test_a_named_folder_is_the_only_one(cli: Call, nano: Path) -> None:
    outcome = cli("validate", nano, "--ctx", "256", *QUICK, "--out", "mine")
    assert outcome.code == 0
    assert sorted(path.name for path in Path().iterdir()) == ["mine"]


@pytest.mark.llama
def test_a_command_that_measures_nothing_leaves_no_folder(cli: Call, tmp_path: Path) -> None:
    assert cli("validate", tmp_path / "none.gguf", "--ctx", "256").code == 3
    assert list(Path().iterdir()) == []


@pytest.mark.llama
def test_where_no_folder_can_be_made_the_work_is_done_all_the_same(cli: Call, nano: Path) -> None:
    Path("runs").write_text("a file")
    outcome = cli("validate", nano, "--ctx", "256", *QUICK)
    assert outcome.code == 0
    assert (
        "The results are not kept (runs: File exists); --out keeps them elsewhere." in outcome.err
    )


@pytest.mark.llama
def test_long_work_says_first_what_it_takes(cli: Call, nano: Path) -> None:
    outcome = cli("validate", nano, "--ctx", "512", *QUICK, "--json")
    first = outcome.err.splitlines()[0]
    assert first.startswith("2 cells of up to 512 tokens (2 times the trained context); at most ")
    assert first.endswith(" of memory")
    assert outcome.json["cells"]


def test_a_dry_run_has_the_total_first_and_says_how_to_get_the_time(
    cli: Call, nano: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(f"models = ['{nano}']\ncontexts = [256]\nkv = ['f16', 'q8_0']\n")
    without = cli("run", plan, "--dry-run")
    assert without.out.startswith("2 jobs, at most ")
    assert "—" not in without.out
    assert without.out.rstrip().endswith("adds the time.")
    known = cli("run", plan, "--dry-run", "--speed", "1000").out
    assert " s on one worker;" in known.splitlines()[0]


def test_work_without_a_terminal_says_how_far_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    from ggufrope_cli import output

    output.stderr_console.cache_clear()
    with plain_lines(lambda: "half\x1b", first=0.05, each=0.05):
        time.sleep(0.3)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.endswith(r" s: half\x1b") for line in lines)


@pytest.mark.llama
def test_a_model_that_cannot_be_loaded_is_one_line_and_5(cli: Call, tmp_path: Path) -> None:
    path = build("llama", tmp_path / "big.gguf", big_endian=True)[0]
    for words in (("validate", path), ("compare", path, "--scaling", "none,yarn")):
        outcome = cli(*words, "--ctx", "256", *QUICK)
        assert (outcome.code, outcome.out) == (5, "")
        errors = [line for line in outcome.err.splitlines() if line.startswith("ggufrope: ")]
        assert len(errors) == 1
        assert f"{path}: llama.cpp cannot load it" in errors[0]
        assert not Path("runs").exists()
    answer = cli("validate", path, "--ctx", "256", *QUICK, "--json")
    assert answer.code == 5
    assert {cell["status"] for cell in answer.json["cells"]} == {"error"}


@pytest.mark.llama
def test_a_cache_without_a_fast_kernel_is_named_before_the_run(
    cli: Call, nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a build of CUDA answers is in its place: this machine has none."""
    slow = frozenset({("q8_0", "q4_0"), ("q4_0", "f16")})
    monkeypatch.setattr("ggufrope.runtime.attention.known_slow_pairs", lambda metadata: slow)
    wanted = ("--ctx", "256", "--tasks", "kv-cache", "--kv", "f16,q8_0/q4_0", "--threads", "1")
    said = cli("validate", nano, *wanted, "--out", tmp_path / "gpu").err
    assert "K/V q8_0/q4_0: attention leaves the GPU" in said
    assert "q4_0/f16" not in said
    on_cpu = cli("validate", nano, *wanted, "--gpu-layers", "0", "--out", tmp_path / "cpu").err
    assert "leaves the GPU" not in on_cpu


@pytest.mark.llama
def test_experts_on_the_cpu_are_part_of_the_plan(cli: Call, nano: Path, tmp_path: Path) -> None:
    wanted = ("--ctx", "256", "--tasks", "kv-cache", "--threads", "1", "--experts-on-cpu", "all")
    cli("validate", nano, *wanted, "--out", tmp_path / "run")
    with RunStore(tmp_path / "run") as store:
        assert store.plan.runtime.experts_on_cpu == "all"
