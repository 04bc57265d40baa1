"""Words where an option takes them: any case, the nearest one named, completed by the shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ggufrope_cli.errors import OptionError
from ggufrope_cli.values import byte_count, seconds, share, tokens
from hypothesis import given
from hypothesis import strategies as st

from ggufrope._format import duration
from tests.cli.conftest import Call

WRONG = {
    ("patch", "-o", "x.gguf", "--scaling", "yarm", "--target-ctx", "512"): "yarn",
    ("patch", "-o", "x.gguf", "--scaling", "none", "--strategy", "growth"): "grow",
    ("patch", "-o", "x.gguf", "--scaling", "none", "--force", "simlink"): "symlink",
    ("undo", "--force", "hardlink"): "hard-link",
    ("export", "--to", "olama"): "ollama",
    ("validate", "--ctx", "256", "--tasks", "needle,paskey"): "passkey",
    ("validate", "--ctx", "256", "--kv", "f16,q8/q4_0"): "q8_0",
    ("validate", "--ctx", "256", "--value", "uid"): "uuid",
    ("validate", "--ctx", "256", "--haystack", "esay"): "essay",
    ("validate", "--ctx", "256", "--ruler-tasks", "niah_single1"): "niah_single_1",
    ("compare", "--ctx", "256", "--scaling", "yarn,tnk"): "ntk",
    ("search", "--target-ctx", "512", "--space", "yarm"): "yarn",
    ("search", "--target-ctx", "512", "--fitness", "perplexty"): "perplexity",
    ("search", "--target-ctx", "512", "--kv", "q8"): "q8_0",
}


@pytest.mark.llama
@pytest.mark.parametrize(("words", "meant"), WRONG.items())
def test_the_nearest_word_is_named(cli: Call, nano: Path, words: list[str], meant: str) -> None:
    command, *options = words
    outcome = cli(command, nano, *options)
    assert outcome.code == 2
    assert outcome.err.endswith(f"; did you mean '{meant}'?\n"), outcome.err
    assert outcome.err.count("\n") == 1


def test_words_have_any_case_and_either_dash(cli: Call, nano: Path) -> None:
    wanted = cli("export", nano, "--to", "llama-server", "--scaling", "ntk-by-parts", "--factor", 2)
    asked = cli("export", nano, "--to", "Llama_Server", "--scaling", "NTK_by_parts", "--factor", 2)
    assert (asked.code, asked.out) == (0, wanted.out)


def completed(line: str) -> list[str]:
    environment = {
        **os.environ,
        "_GGUFROPE_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    code = "from ggufrope_cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ggufrope val", ["validate"]),
        ("ggufrope patch x --scaling y", ["yarn"]),
        ("ggufrope patch x --strategy g", ["grow"]),
        ("ggufrope undo x --force sy", ["symlink"]),
        ("ggufrope compare x --scaling none,y", ["none,yarn"]),
        ("ggufrope export x --to lm", ["lmstudio"]),
        ("ggufrope validate x --tasks needle,pa", ["needle,passkey"]),
        ("ggufrope validate x --kv f16,q8_0/q4", ["f16,q8_0/q4_1", "f16,q8_0/q4_0"]),
        ("ggufrope validate x --value u", ["uuid"]),
        ("ggufrope search x --space l", ["longrope", "longrope2"]),
        ("ggufrope search x --kv b", ["bf16"]),
        ("ggufrope patch mod", []),  # the shell completes files
    ],
)
def test_the_shell_completes_words(line: str, words: list[str]) -> None:
    assert completed(line) == words


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("MODEL",), "did you mean `ggufrope inspect MODEL`?"),
        (("ollama:qwen3",), "did you mean `ggufrope inspect ollama:qwen3`?"),
        (("https://u:p@host/m.gguf",), "an address is no command; did you mean `ggufrope inspect"),
        (("isnpect", "MODEL"), "Did you mean 'inspect'?"),
        (("inspect", "MODEL", "MODEL"), "got unexpected extra argument(s)"),
        (("validate", "MODEL", "--samples", "x"), "'x' is not a whole number; see `ggufrope "),
        (("patch", "MODEL", "--ouput", "x"), "no such option: --ouput"),
    ],
)
def test_words_that_are_no_call_are_one_line(
    cli: Call, nano: Path, words: tuple[str, ...], meant: str
) -> None:
    outcome = cli(*(nano if word == "MODEL" else word for word in words))
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("ggufrope: ")
    assert outcome.err.count("\n") == 1
    assert meant.replace("MODEL", str(nano)) in outcome.err


def test_help_is_a_command_and_no_words_show_it(cli: Call) -> None:
    assert "Usage: ggufrope patch [OPTIONS] FILE " in cli("help", "patch").out
    assert cli("help", "patch").out == cli("patch", "--help").out
    assert cli("help").out == cli("--help").out == cli().out
    assert (cli("help").code, cli().code) == (0, 2)


def test_the_version_has_a_short_form_and_the_package_runs(cli: Call) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ggufrope", "-V"], capture_output=True, text=True, check=True
    )
    assert done.stdout == cli("--version").out


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4096),
        ("4k", 4096),
        ("4K", 4096),
        ("1M", 1 << 20),
        ("1.5k", 1536),
        ("0.5M", 1 << 19),
    ],
)
def test_tokens(text: str, count: int) -> None:
    assert tokens("--ctx")(text) == count


@pytest.mark.parametrize(
    "text", ["", "0", "k", "-1", "1e3", "4kb", "1km", "1mk", "1.00001k", "9" * 19]
)
def test_what_is_no_number_of_tokens(text: str) -> None:
    with pytest.raises(OptionError, match="expected tokens such as 16384, 16k or 1M"):
        tokens("--ctx")(text)


@given(st.integers(1, 10**16))
def test_every_number_of_tokens_is_read_back(count: int) -> None:
    assert tokens("--ctx")(str(count)) == count
    assert tokens("--ctx")(f"{count}k") == 1024 * count


@given(st.floats(1, 1e6))
def test_a_time_that_we_print_is_one_that_we_read(span: float) -> None:
    assert seconds(duration(span), "--budget") == pytest.approx(span, rel=0.06)


def test_shares_and_sizes() -> None:
    assert [share("--min-recall")(text) for text in ("0.9", "90%", "90 %")] == [0.9] * 3
    sizes = [byte_count("--memory")(text) for text in ("1k", "1KiB", "1 kib", "1024")]
    assert sizes == [1024] * 4
    assert byte_count("--memory")("1.5GB") == 1_500_000_000
    for parse, text in ((share("--x"), "90%%"), (byte_count("--x"), "9 GiBs")):
        with pytest.raises(OptionError, match=f"--x {text}: expected"):
            parse(text)
