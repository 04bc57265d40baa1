"""The command line over generated files, names and plans: documented exits, one-line errors."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from ggufrope_cli import output
from ggufrope_cli.app import main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_limits import hostile
from tests.container.writer import small_model
from tests.property.strategies import models

profile = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

DOCUMENTED = {0, 1, 2, 3, 4, 5, 130}
"""Exit codes but for 70, a fault of ours, and 141: nobody closes the output here."""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def call(*arguments: object) -> Outcome:
    """Run `ggufrope` in this process; its output as bytes would have it, decoded strictly."""
    output.console.cache_clear()
    output.stderr_console.cache_clear()
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    code: object = None
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            code = leaving.code
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    assert isinstance(code, int)
    return Outcome(code, *texts)


def check(*arguments: object) -> Outcome:
    """Run a command and hold it to what is documented of every command."""
    outcome = call(*arguments)
    shown = f"{arguments}: {outcome.code} {outcome.err}"
    assert outcome.code in DOCUMENTED, shown
    assert "Traceback" not in outcome.err, shown
    assert not any(c in outcome.out + outcome.err for c in "\x00\x07\x1b\x9b\u202e"), shown
    errors = [line for line in outcome.err.splitlines() if line.startswith("ggufrope: ")]
    if outcome.code >= 2 and not outcome.err.startswith("Usage: "):
        assert len(errors) <= 1, shown
    if "--json" in arguments and outcome.code in (0, 1) and outcome.out:
        answer = json.loads(outcome.out)
        assert answer["schema"] == 1
        json.dumps(answer, ensure_ascii=False).encode()  # no lone surrogates
    return outcome


NAMES = st.one_of(
    st.sampled_from(["m.gguf", "=1+1.gguf", "-x.gguf", "a\nb.gguf", "\x1b[2J.gguf", "\udcff.gguf"]),
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20
    ),
    st.integers(180, 300).map(lambda length: "n" * length),
    st.sampled_from(["", ".", "..", "/", "\0", "a\0b", "ollama:x", "ollama:../x:..", "hf:a/b/c"]),
)
FILES = st.one_of(
    models().map(lambda model: model.encoded()),
    st.integers(0, 1 << 30).map(hostile),
    st.just(small_model().encoded()),
    st.binary(max_size=100),
)


def file_commands(path: object, folder: Path) -> list[tuple[object, ...]]:
    scaling = ("--scaling", "yarn", "--factor", "2")
    return [
        ("inspect", path),
        ("inspect", path, "--json"),
        ("check", path, "--json"),
        ("factors", path, "--json"),
        ("diff", path, path, "--json"),
        ("verify", path, path),
        ("advise", path, "--target-ctx", "8k", "--json"),
        ("export", path, "--to", "llama-server"),
        ("patch", path, "-o", folder / "out.gguf", *scaling, "--json"),
        ("patch", path, "-o", folder / "baked.gguf", *scaling, "--bake", "--orig-ctx", "64"),
        ("patch", path, "--in-place", *scaling),
        ("undo", path),
    ]


@profile
@given(FILES)
def test_any_file(data: bytes) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "m.gguf").write_bytes(data)
        outcomes = [check(*command) for command in file_commands(folder / "m.gguf", folder)]
        assert len(outcomes) == 12


@profile
@given(NAMES)
def test_any_name(name: str) -> None:
    with TemporaryDirectory() as parent:
        folder = Path(parent)
        path = name
        if not name.startswith(("ollama:", "hf:")):
            path = f"{folder}/{name}"
            with suppress(OSError, ValueError):
                Path(path).write_bytes(small_model().encoded())
        for command in file_commands(path, folder):
            check(*command)
        check("report", path, "--json")
        check("run", path, "--dry-run")


WORDS = st.sampled_from(
    [
        *("1", "-1", "0", "1e308", "1e400", "nan", "inf", "-inf", "9" * 400, "9" * 5000, "true"),
        *("0x" + "f" * 300, '""', '"x"', "[]", "[[]]", '[1, "x"]', "{}", "{ a = 1 }", "[nan]"),
        *("1979-05-27", "[1e300]", '["f16/zz"]', '["/"]', '[""]', '["\\u0000"]', "[256, 256]"),
        *("[9223372036854775808]", "[" * 50 + "]" * 50, '["file", "none"]', "1000000000"),
        *('[{ scaling = "yarn" }]', '[{ scaling = "yarn", factor = nan }]', "[128.5]"),
        *('[{ scaling = "yarn", factor = 1e-320 }]', '[{ scaling = "yarn", factor = -4 }]'),
        *('[{ scaling = "yarn", target_context = 99999999999999999999 }]', "[100000000]"),
        *('{ kind = "text", file = "/dev/zero" }', '{ kind = "noise" }', "{ threads = -1 }"),
        *('{ devices = ["0", "0"] }', "{ gpu_layers = -5 }", "{ recall = 2 }", "'\\x'", "["),
    ]
)
KEYS = st.sampled_from(
    [
        *("models", "contexts", "name", "tasks", "scalings", "kv", "depths", "mode", "control"),
        *("value", "samples", "seeds", "haystack", "text", "chunks", "ruler", "runtime"),
        *("thresholds", "schema", "nope", "models.x", '"\\u0000"', "a.b.c", "a" + ".a" * 200),
    ]
)


@settings(profile, max_examples=80)
@given(st.dictionaries(KEYS, WORDS, min_size=1, max_size=2), st.booleans())
def test_any_plan(changed: dict[str, str], whole: bool) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "m.gguf").write_bytes(small_model().encoded())
        plan = {"models": json.dumps([str(folder / "m.gguf")]), "contexts": "[256]"} | changed
        text = "".join(f"{key} = {value}\n" for key, value in plan.items())
        path = folder / "plan.toml"
        path.write_text(text if whole else text[: len(text) // 2])
        check("run", path, "--dry-run", "--json")
        # With a selection of nothing, the run is stored and no job of it begun.
        check("run", path, "--out", folder / "run", "--only", "seed=none")


OPTIONS = st.sampled_from(
    [*("--ctx", "--depths", "--samples", "--seed", "--kv", "--tasks", "--gpu-layers", "--chunks")]
)


@pytest.mark.llama
@profile
@given(OPTIONS, st.one_of(WORDS, st.text(max_size=10)))
def test_any_option(option: str, word: str) -> None:
    if (option, word) in {("--ctx", "1000000000")}:
        return
    with TemporaryDirectory() as name:
        # A file that no runtime loads: what is wrong is said before one is asked, or by it.
        (Path(name) / "m.gguf").write_bytes(b"GGUF")
        given_ctx = () if option == "--ctx" else ("--ctx", "256")
        outcome = check("validate", Path(name) / "m.gguf", *given_ctx, f"{option}={word}")
        assert outcome.code in (2, 3)
