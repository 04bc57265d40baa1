"""Commands on files that are on a server: addresses, and the Hub by a stand-in for it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.make import build
from tests.cli.conftest import Call
from tests.container.test_shards import split
from tests.web import Server, send, serve

TOKEN = "hf_secret"


@pytest.fixture
def server(nano: Path) -> Iterator[Server]:
    with serve() as running:
        running.files["/nano.gguf"] = nano.read_bytes()
        yield running


READING = {
    "inspect": ("FILE",),
    "check": ("FILE",),
    "advise": ("FILE", "--target-ctx", "1k"),
    "export": ("FILE", "--to", "ollama"),
    "diff": ("FILE", "FILE"),
    "factors": ("FILE",),
    "patch": ("FILE", "-o", "out.gguf", "--scaling", "yarn", "--target-ctx", "1k", "--dry-run"),
}


@pytest.mark.parametrize("command", READING)
def test_the_answer_is_that_for_the_file_on_disk(
    cli: Call, server: Server, nano: Path, command: str
) -> None:
    shutil.copy(nano, "nano.gguf")
    remote, local = (
        cli(command, *(name if word == "FILE" else word for word in READING[command]), "--json")
        for name in (server.url("/nano.gguf"), "nano.gguf")
    )
    assert (remote.code, local.code) == (0, 0)
    answer = remote.json
    for file in answer.pop("remote"):
        assert file["bytes_read"] < file["size"] == nano.stat().st_size
        assert f"{file['file']}: read 256.0 KiB of 1.3 MiB in 1 request\n" in remote.err
    text = json.dumps(answer).replace(server.url("/nano.gguf"), "nano.gguf")
    wanted = json.dumps(local.json)
    if command == "patch":  # which may be shared on this disk, and travels from another
        assert (answer["strategy"], answer["written"]) == ("stream", False)
        assert answer["edits"] == local.json["edits"]
    else:
        assert text == wanted


@pytest.mark.llama
@pytest.mark.parametrize(
    "words",
    [
        ("patch", "FILE", "-o", "x.gguf", "--scaling", "yarn", "--factor", 2),
        ("patch", "FILE", "--in-place", "--dry-run", "--scaling", "yarn", "--factor", 2),
        ("verify", "FILE", "FILE"),
        ("probe", "FILE"),
        ("validate", "FILE", "--ctx", 256),
        ("search", "FILE", "--target-ctx", 512),
        ("undo", "FILE"),
    ],
)
def test_what_needs_the_whole_file_says_how_to_get_it(
    cli: Call, server: Server, words: tuple[object, ...]
) -> None:
    address = server.url("/nano.gguf")
    outcome = cli(*(address if word == "FILE" else word for word in words))
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.count("\n") == 1
    assert f"bring it here with `curl -f -L -O {address}`" in outcome.err
    assert not Path("x.gguf").exists()


def test_whole_is_an_option_where_it_is_needed(cli: Call, server: Server) -> None:
    server.ranges = False
    address = server.url("/nano.gguf")
    refused = cli("inspect", address)
    assert refused.code == 3
    assert "is allowed by --whole" in refused.err
    assert "is allowed by --whole" in cli("check", address).out
    assert cli("inspect", address, "--whole").code == 0
    assert cli("check", address, "--whole", "--sarif", "x.sarif").code == 0


def test_a_check_goes_on_after_a_file_that_is_not_there(cli: Call, server: Server) -> None:
    gone = server.url("/gone.gguf?token=hidden", "user:secret@")
    outcome = cli("check", gone, server.url("/nano.gguf"), "--sarif", "x.sarif")
    assert outcome.code == 3
    assert "the server answers 404 Not Found" in outcome.out
    assert "2 files: 1 error" in outcome.out
    result = json.loads(Path("x.sarif").read_text())["runs"][0]["results"][0]
    place = result["locations"][0]["physicalLocation"]["artifactLocation"]
    assert place == {"uri": server.url("/gone.gguf")}
    told = outcome.out + outcome.err + Path("x.sarif").read_text()
    assert "secret" not in told
    assert "hidden" not in told


def test_an_export_is_for_the_file_when_it_is_here(cli: Call, server: Server) -> None:
    outcome = cli("export", server.url("/nano.gguf"), "--to", "llama-server")
    assert outcome.out == "llama-server -m nano.gguf -c 256\n"
    assert f"To bring it here: curl -f -L -O {server.url('/nano.gguf')}" in outcome.err


def test_advice_names_the_file_as_it_will_be_here(cli: Call, server: Server) -> None:
    outcome = cli("advise", server.url("/nano.gguf"), "--target-ctx", "1k")
    assert "$ ggufrope patch nano.gguf -o " in outcome.out
    assert f"To bring it here: curl -f -L -O {server.url('/nano.gguf')}" in outcome.out


# The Hub -----------------------------------------------------------------------------------------


class Hub:
    """A stand-in for the Hub, and the command line in a process of its own that asks it."""

    def __init__(self, server: Server, store: Server, folder: Path) -> None:
        self.server, self.store, self.folder = server, store, folder
        self.settings: dict[str, str] = {}

    def put(self, path: str, content: bytes, revision: str = "main") -> None:
        """Add a file of owner/repo; its bytes are on another server, as the Hub's are."""
        self.store.files[f"/blobs/{path}"] = content
        headers: dict[str, Any] = {
            "X_Repo_Commit": "c" * 40,
            "X_Linked_Etag": '"tag"',
            "X_Linked_Size": len(content),
            "ETag": '"tag"',
            "Location": self.store.url(f"/blobs/{path}?signature=hidden"),
        }
        self.server.answers[f"/owner/repo/resolve/{revision}/{path}"] = lambda handler: send(
            handler, 302, **headers
        )

    def refuse(self, path: str, status: int, code: str) -> None:
        """Answer as the Hub does where a file cannot be had."""
        self.server.answers[f"/owner/repo/resolve/main/{path}"] = lambda handler: send(
            handler, status, X_Error_Code=code
        )

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {name: text for name, text in os.environ.items() if "HF_" not in name}
        environment |= {
            "HF_HOME": str(self.folder),
            "HF_ENDPOINT": self.server.url(""),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "NO_COLOR": "1",
            **self.settings,
        }
        command = [sys.executable, "-m", "ggufrope", *words]
        return subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=120
        )


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve() as server, serve() as store:
        yield Hub(server, store, tmp_path)


def sent(server: Server) -> set[str | None]:
    """The credentials that requests for files had."""
    return {
        {name.lower(): text for name, text in headers.items()}.get("authorization")
        for _, path, headers in server.requests
        if not path.startswith("/api/")
    }


def payload(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_header_on_the_hub(hub: Hub, nano: Path) -> None:
    hub.put("sub/nano.gguf", nano.read_bytes())
    name = "hf:owner/repo/sub/nano.gguf"
    done = hub("inspect", name, "--json")
    answer = payload(done)
    assert (answer["file"], answer["architecture"]) == (name, "llama")
    assert answer["remote"][0]["bytes_read"] == 256 << 10
    assert f"{name}: read 256.0 KiB of 1.3 MiB in 2 requests" in done.stderr
    assert sent(hub.server) == {f"Bearer {TOKEN}"}
    assert sent(hub.store) == {None}
    for word in (TOKEN, "hidden"):
        assert word not in done.stdout + done.stderr
        assert not [f for f in hub.folder.rglob("*") if f.is_file() and word in f.read_text()]


def test_a_revision(hub: Hub, nano: Path) -> None:
    hub.put("nano.gguf", nano.read_bytes(), revision="v1%2Frc")
    assert hub("check", "hf:owner/repo/nano.gguf@v1/rc").returncode == 0
    assert hub("check", "hf:owner/repo/nano.gguf").returncode == 3


REFUSALS = {
    (404, "EntryNotFound"): "the repository has no such file",
    (404, "RevisionNotFound"): "the repository has no revision main",
    (401, "RepoNotFound"): "no such repository, or a private one: log in",
    (403, "GatedRepo"): "the repository is gated: ask for access",
}


@pytest.mark.parametrize(("answer", "says"), REFUSALS.items())
@pytest.mark.parametrize("command", ["inspect", "fetch"])
def test_refusals_of_the_hub_are_one_line(
    hub: Hub, command: str, answer: tuple[int, str], says: str
) -> None:
    hub.refuse("m.gguf", *answer)
    done = hub(command, "hf:owner/repo/m.gguf")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("ggufrope: hf:owner/repo/m.gguf: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert TOKEN not in done.stderr


def test_a_hub_that_is_out_of_order(hub: Hub) -> None:
    hub.refuse("m.gguf", 500, "")
    done = hub("inspect", "hf:owner/repo/m.gguf")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "ggufrope: hf:owner/repo/m.gguf: the Hub answers 500\n"


def test_offline(hub: Hub) -> None:
    hub.settings["HF_HUB_OFFLINE"] = "1"
    for command in ("inspect", "fetch"):
        done = hub(command, "hf:owner/repo/m.gguf")
        assert done.returncode == 3
        assert "not in the cache" in done.stderr
    assert not hub.server.requests


def test_an_endpoint_that_is_not_safe(hub: Hub) -> None:
    hub.settings["HF_ENDPOINT"] = "http://192.0.2.1"
    for command in ("inspect", "fetch"):
        done = hub(command, "hf:owner/repo/m.gguf")
        assert done.returncode == 2
        assert "only https: addresses are read" in done.stderr


def test_a_fetched_model_is_found_and_is_not_edited(hub: Hub, nano: Path) -> None:
    hub.put("nano.gguf", nano.read_bytes())
    name = "hf:owner/repo/nano.gguf"
    answer = payload(hub("fetch", name, "--json"))
    (file,) = map(Path, answer["files"])
    assert (file.read_bytes(), answer["bytes"]) == (nano.read_bytes(), nano.stat().st_size)
    assert sent(hub.store) == {None}
    asked = len(hub.server.requests)
    assert hub("inspect", name).returncode == 0
    assert len(hub.server.requests) == asked  # it is here
    scaling = ("--scaling", "yarn", "--target-ctx", "1k")
    refused = hub("patch", name, "--in-place", *scaling)
    assert refused.returncode == 3
    assert "Hugging Face cache" in refused.stderr or "is a link" in refused.stderr
    copied = hub("patch", name, "-o", "out.gguf", *scaling)
    assert copied.returncode == 0, copied.stderr
    assert file.read_bytes() == nano.read_bytes()
    assert hub.folder.joinpath("out.gguf").is_file()


def test_a_download_that_broke_off_goes_on(hub: Hub, nano: Path) -> None:
    content = nano.read_bytes() + bytes(24 << 20)  # huggingface_hub writes 10 MB at a time
    hub.put("nano.gguf", content)
    whole = hub.store.files.pop("/blobs/nano.gguf")

    def break_off(handler: Any) -> None:
        hub.store.files["/blobs/nano.gguf"] = whole
        del hub.store.answers["/blobs/nano.gguf"]
        half = content[: 15 << 20]
        send(handler, 200, half, Content_Length=len(content), Connection="close")
        handler.close_connection = True

    hub.store.answers["/blobs/nano.gguf"] = break_off
    name = "hf:owner/repo/nano.gguf"
    hub("fetch", name)
    (file,) = map(Path, payload(hub("fetch", name, "--json"))["files"])
    assert file.read_bytes() == content
    asked = [headers.get("Range", "") for headers in hub.store.asked("/blobs/nano.gguf")]
    assert any(re.fullmatch(r"bytes=[1-9]\d+-", each) for each in asked), asked


def test_a_split_model_on_the_hub_is_read_from_its_first_file(hub: Hub, tmp_path: Path) -> None:
    files = build("llama", tmp_path / "m.gguf", shard_tensors=8)
    first = files[0]
    for file in files:
        hub.put(f"sub/{file.name}", file.read_bytes())
    difference = payload(hub("diff", f"hf:owner/repo/sub/{first.name}", str(first), "--json"))
    assert difference["same"] is True
    checked = payload(hub("check", f"hf:owner/repo/sub/{first.name}", "--json"))
    assert checked["files"][0]["readable"] is True
    asked = {path for _, path, _ in hub.store.requests}
    assert len(asked) == len(files) > 1


def test_all_files_of_a_split_model_are_fetched(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    first = split(folder)
    for file in folder.iterdir():
        hub.put(file.name, file.read_bytes())
    answer = payload(hub("fetch", f"hf:owner/repo/{first.name}", "--json"))
    assert [Path(file).name for file in answer["files"]] == sorted(
        file.name for file in folder.iterdir()
    )
    other = hub("fetch", f"hf:owner/repo/{first.name.replace('00001-', '00002-')}")
    assert other.returncode == 2
    assert f"name {first.name}" in other.stderr


@pytest.mark.parametrize(
    "name", ["model.gguf", "https://example.org/m.gguf", "hf:a/../c", "hf:a/b/../../c.gguf"]
)
def test_names_that_are_not_fetched(cli: Call, name: str) -> None:
    outcome = cli("fetch", name)
    assert outcome.code == 2
    assert "expected hf:OWNER/REPO/FILE" in outcome.err
