"""The commands that load a model, over generated models, names and plans.

Each command is a process of its own: llama.cpp may end it. Documented exit codes and one-line
errors are accepted, within a minute.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.abort_sweep import File, of_type
from benchmarks.fuzz_commands import NANO, Commands, attack
from tests.container.writer import small_model
from tests.property.test_command_line import KEYS, NAMES, WORDS

pytestmark = [
    pytest.mark.llama,
    pytest.mark.skipif(sys.platform == "win32", reason="forks"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Commands]:
    with Commands() as commands:
        yield commands


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 1 << 30))
def test_any_model(server: Commands, seed: int) -> None:
    exits, faults = attack(server, seed)
    assert faults == []
    assert exits.total() == 8


@settings(deadline=None, max_examples=8)
@given(name=NAMES)
def test_any_name(server: Commands, name: str) -> None:
    with TemporaryDirectory() as parent:
        folder = Path(parent, "folder")  # so that ".." is no place of others
        folder.mkdir()
        path = name if name.startswith(("ollama:", "hf:")) else f"{folder}/{name}"
        with suppress(OSError, ValueError):
            Path(folder, name).write_bytes(small_model().encoded())
        quick = ("--ctx", "256", "--depths", "1", "--threads", "1")
        for arguments in (
            ("probe", path, "--json"),
            ("validate", path, *quick, "--json"),
            ("validate", str(NANO), *quick, "--out", path),
            ("search", path, "--target-ctx", "512"),
            ("report", path, "--json"),
            ("report", str(folder), "--html", path),
        ):
            assert server.call(*arguments, cwd=folder).fault(arguments) is None


@settings(deadline=None, max_examples=10)
@given(changed=st.dictionaries(KEYS, WORDS, min_size=1, max_size=2), whole=st.booleans())
def test_any_plan(server: Commands, changed: dict[str, str], whole: bool) -> None:
    with TemporaryDirectory() as parent:
        folder = Path(parent)
        (folder / "m.gguf").write_bytes(small_model().encoded())
        plan = {"models": '["m.gguf"]', "contexts": "[256]", "depths": "1"} | changed
        text = "".join(f"{key} = {value}\n" for key, value in plan.items())
        (folder / "plan.toml").write_text(text if whole else text[: len(text) // 2])
        for arguments in (
            ("run", "plan.toml", "--out", "run", "--json"),
            ("run", "plan.toml", "--out", "run", "--retry-failed"),
            ("report", "run", "--csv", "cells.csv", "--junit", "junit.xml"),
        ):
            assert server.call(*arguments, cwd=folder).fault(arguments) is None


def test_an_assertion_of_llama_cpp_is_one_line_and_exit_code_5(
    server: Commands, tmp_path: Path
) -> None:
    model = tmp_path / "m.gguf"
    nano = File.nano()
    norm = of_type(nano.tensor("blk.0.attn_norm.weight"), 1)  # of f16, which its kernel asserts
    model.write_bytes(nano.with_tensor(norm).encoded)
    for arguments in (("probe", str(model)), ("validate", str(model), "--ctx", "256")):
        outcome = server.call(*arguments, cwd=tmp_path)
        assert outcome.code == 5
        assert "unsupported types" in outcome.err.splitlines()[-1]
    (tmp_path / "plan.toml").write_text(
        f"models = [{json.dumps(str(model))}]\ncontexts = [256]\ndepths = 1\n"
    )
    outcome = server.call("run", "plan.toml", "--out", "run", "--json", cwd=tmp_path)
    assert outcome.code == 5  # every job failed
    (reason,) = {cell["reason"] for cell in json.loads(outcome.out)["cells"]}
    assert reason.startswith("worker killed by SIGABRT; last log line: binary-ops.cpp:")
