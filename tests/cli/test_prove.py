"""`--prove` of the commands: what they say, and how they fail."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from fixtures.make import build
from ggufrope.container.reader import read_header
from ggufrope.container.store import execute, plan_store
from ggufrope.container.types import Edits
from ggufrope.container.writer import plan_rewrite
from tests.container.edits import text

pytestmark = pytest.mark.llama

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Call


def test_the_commands_prove_and_fail(cli: Call, nano_copy: Path, tmp_path: Path) -> None:
    scaled = ("--scaling", "yarn", "--factor", "2", "--prove")
    said = cli("patch", nano_copy, "--in-place", *scaled)
    assert said.code == 0
    assert f"Proved: gguf {version('gguf')} and llama.cpp" in said.out
    answer = cli("undo", nano_copy, "--prove", "--json").json["proof"]
    assert answer["passed"]
    assert [one["name"] for one in answer["witnesses"]] == ["gguf", "llama.cpp"]
    build("llama", tmp_path / "bad.gguf")
    header = read_header(tmp_path / "bad.gguf")
    edits = Edits(set={"general.name": text("\udcff")})
    execute(plan_store(tmp_path / "bad.gguf", plan_rewrite(header, edits)))
    for done in (
        cli("verify", nano_copy, tmp_path / "bad.gguf", "--prove"),
        cli("patch", tmp_path / "bad.gguf", "-o", tmp_path / "out.gguf", *scaled),
        cli("check", tmp_path, "--prove"),
    ):
        assert done.code == 1
        assert "gguf-reads-otherwise" in done.out
    files = cli("check", tmp_path, "--prove", "--json").json["files"]
    passed = {file["file"].rsplit("/")[-1]: file["proof"]["passed"] for file in files}
    assert passed == {"bad.gguf": False, "out.gguf": False, nano_copy.name: True}
