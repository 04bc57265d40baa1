"""The library names fields, the command line names options: one table, one place."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer.main
from ggufrope_cli.app import build as build_app
from ggufrope_cli.errors import OTHER_FLAGS, with_flags

from fixtures.make import build
from ggufrope.patching.command import FLAGS
from tests.cli.conftest import Call


def test_every_flag_of_the_table_is_an_option() -> None:
    commands = typer.main.get_command(build_app()).commands  # type: ignore[attr-defined]
    options = {
        option
        for command in commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    flags = {*FLAGS.values(), *OTHER_FLAGS.values()}
    assert len(flags) > 40
    assert flags <= options
    assert not set(FLAGS) & set(OTHER_FLAGS)


def test_fields_in_backquotes_become_flags_and_nothing_else_does() -> None:
    assert with_flags("`target_context` 4 of `target_context`") == "--target-ctx 4 of --target-ctx"
    kept = "factor, llama.rope.scaling.factor, `ggufrope inspect x`, `factors`, `a.factor`"
    assert with_flags(kept) == kept


def test_options_of_validate_are_named(cli: Call, llama: Path) -> None:
    outcome = cli("validate", llama, "--ctx", "512", "--min-recall", "2")
    assert outcome.code == 2
    assert "--min-recall must be between 0 and 1" in outcome.err


def test_a_plan_file_keeps_its_own_keys(cli: Call, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('models = ["m.gguf"]\ncontexts = [512]\n[thresholds]\nrecall = 2\n')
    outcome = cli("run", plan)
    assert outcome.code == 2
    assert "`recall` must be between 0 and 1" in outcome.err


EVERY = {
    "inspect": (),
    "patch": ("--in-place", "--scaling", "yarn", "--factor", "2"),
    "undo": (),
    "factors": (),
    "probe": (),
    "advise": ("--target-ctx", "1024"),
    "export": ("--to", "ollama"),
    "validate": ("--ctx", "256"),
    "compare": ("--ctx", "256"),
    "search": ("--target-ctx", "1024"),
}
"""Commands that take one model, with what else they need."""


@pytest.mark.llama
@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("FOLDER", 3, " is a directory; expected a GGUF file"),
        ("", 2, "the name of the model is empty; expected a path"),
        ("absent.gguf", 3, "cannot read absent.gguf: No such file or directory"),
        ("http://192.0.2.1/x.gguf", 2, "https: addresses are read, and http: ones of this machine"),
    ],
)
@pytest.mark.parametrize("command", EVERY)
def test_a_name_that_is_no_model_is_the_same_line_everywhere(
    cli: Call, tmp_path: Path, command: str, name: str, code: int, said: str
) -> None:
    outcome = cli(command, tmp_path if name == "FOLDER" else name, *EVERY[command])
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.endswith(f"{said}\n")
    assert outcome.err.count("\n") == 1


@pytest.mark.llama
@pytest.mark.parametrize("name", [".", "/", ".."])
@pytest.mark.parametrize("command", EVERY)
def test_a_folder_without_a_name_is_a_folder(cli: Call, command: str, name: str) -> None:
    outcome = cli(command, name, *EVERY[command])
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err == f"ggufrope: {name} is a directory; expected a GGUF file\n"


def test_a_seed_out_of_range_is_named_by_its_flag(cli: Call, nano: Path) -> None:
    outcome = cli("validate", nano, "--ctx", "256", "--seed", 1 << 66)
    assert (outcome.code, outcome.out) == (2, "")
    assert "--seed is a number of 67 bits" in outcome.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--chunks", "3"), "--chunks has no effect on needle: it is for perplexity, divergence"),
        (("--tasks", "passkey", "--needle", "latent"), "--needle has no effect on passkey"),
        (("--tasks", "perplexity", "--depths", "5"), "--depths has no effect on perplexity"),
        (("--tasks", "ruler,kv-cache", "--distractors", "2"), "no effect on ruler,kv-cache"),
        (("--ruler-tasks", "vt"), "--ruler-tasks has no effect on needle: it is for ruler"),
    ],
)
def test_an_option_of_tasks_that_do_not_run_is_refused(
    cli: Call, nano: Path, options: tuple[str, ...], said: str
) -> None:
    outcome = cli("validate", nano, "--ctx", "256", *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err


@pytest.mark.parametrize("option", ["--out", "--text", "--to"])
def test_an_empty_value_is_refused(cli: Call, nano: Path, option: str) -> None:
    outcome = cli("validate", nano, "--ctx", "256", option, "")
    assert outcome.code == 2
    assert f"the value after {option} is empty" in outcome.err
    assert not Path("run.sqlite").exists()


@pytest.mark.llama
@pytest.mark.parametrize("command", ["patch", "undo", "probe", "validate", "compare", "search"])
def test_a_file_that_is_not_here_is_fetched_first(cli: Call, command: str) -> None:
    outcome = cli(command, "hf:owner/name/x y.gguf", *EVERY[command])
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.endswith("`ggufrope fetch 'hf:owner/name/x y.gguf'`\n")
    assert outcome.err.count("\n") == 1


@pytest.mark.llama
@pytest.mark.parametrize("command", ["patch", "advise", "export", "validate"])
def test_an_error_about_a_key_names_the_file(cli: Call, tmp_path: Path, command: str) -> None:
    path = build("llama", tmp_path / "odd.gguf", keys={"block_count": 600})[0]
    outcome = cli(command, path, *EVERY[command])
    assert outcome.code == 3
    assert outcome.err == f"ggufrope: {path}: llama.block_count is 600: expected 1 to 512 layers\n"
