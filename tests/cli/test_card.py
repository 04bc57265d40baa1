"""A proof card written from a run, renewed, and compared with files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Call
from tests.web import Server, serve

pytestmark = pytest.mark.llama
MEASURED = ("--ctx", 256, "--tasks", "passkey", "--depths", 1, "--samples", 1)


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


def test_a_card_from_the_run_to_the_check(cli: Call, nano_copy: Path, server: Server) -> None:
    cli("validate", nano_copy, *MEASURED, "--out", "run")
    written = cli("report", "run", "--card", "README.md")
    assert (written.code, written.out) == (0, "")
    assert "wrote README.md" in written.err
    text = Path("README.md").read_text(encoding="utf-8")
    assert str(nano_copy.parent) not in text
    Path("README.md").write_text(f"# Mine\n{text}", encoding="utf-8")
    assert cli("report", "run", "--card", "README.md").code == 0
    assert Path("README.md").read_text(encoding="utf-8") == f"# Mine\n{text}"

    same = cli("check", "--card", "README.md", nano_copy)
    assert same.code == 0
    assert "card-matches: it is that of nano, of which README.md speaks, byte for byte" in same.out
    server.files["/n.gguf"] = nano_copy.read_bytes()
    remote = cli("check", "--card", "README.md", server.url("/n.gguf"), "--json")
    (finding,) = remote.json["files"][0]["findings"]
    assert (finding["code"], finding["severity"]) == ("card-header-matches", "info")

    assert cli("patch", nano_copy, "--in-place", "--scaling", "yarn", "--factor", 2).code == 0
    other = cli("check", "--card", "README.md", nano_copy, "--sarif", "x.sarif")
    assert other.code == 1
    assert "card-differs" in other.out
    assert "card-differs" in json.dumps(json.loads(Path("x.sarif").read_text(encoding="utf-8")))


def test_a_model_card_of_somebody_is_not_overwritten(cli: Call, nano: Path) -> None:
    cli("validate", nano, *MEASURED, "--out", "run")
    Path("README.md").write_text("# Mine\n", encoding="utf-8")
    refused = cli("report", "run", "--card", "README.md")
    assert refused.code == 2
    assert "README.md is there and has no card of ggufrope" in refused.err
    assert Path("README.md").read_text(encoding="utf-8") == "# Mine\n"
    shown = cli("report", "run", "--card", "-")
    assert shown.out.startswith("---\nmodel-index:\n")
