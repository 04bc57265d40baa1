"""Headers of files on a server: what travels, and what a server cannot make us do."""

from __future__ import annotations

import shlex
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufrope.container import remote
from ggufrope.container.compare import diff
from ggufrope.container.hub import fetch
from ggufrope.container.location import find, locate
from ggufrope.container.reader import read_header, read_span, read_tensor
from ggufrope.container.remote import FIRST_BLOCK, RemoteFile
from ggufrope.container.shards import open_model
from ggufrope.container.types import Span
from ggufrope.errors import FileError, MalformedError, RequestError, StorageError
from tests.container.test_shards import split
from tests.web import Server, Virtual, drip, redirect, send, serve

GIGA = 10**9


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


def at(server: Server, path: str = "/m.gguf", *, whole: bool = False) -> RemoteFile:
    found = find(server.url(path), whole=whole)
    assert isinstance(found, RemoteFile)
    return found


def vocabulary(words: int) -> bytes:
    """A header of one long array of strings and one key behind it."""
    tokens = b"".join(struct.pack("<Q", 12) + b"%12d" % number for number in range(words))
    return b"".join((
        b"GGUF",
        struct.pack("<IQQ", 3, 0, 2),
        struct.pack("<Q", 1) + b"t" + struct.pack("<IIQ", 9, 8, words) + tokens,
        struct.pack("<Q", 1) + b"z" + struct.pack("<II", 4, 7),
    ))  # fmt: skip


def test_the_header_is_that_of_the_file(server: Server, nano: Path) -> None:
    server.files["/m.gguf"] = nano.read_bytes()
    file = at(server)
    assert read_header(file) == read_header(nano)
    assert (file.size, file.requests) == (nano.stat().st_size, 1)
    assert file.bytes_read == FIRST_BLOCK
    tensor = read_header(nano).tensors[-1].name
    assert read_tensor(file, read_header(file), tensor) == read_tensor(
        nano, read_header(nano), tensor
    )


def test_of_forty_gigabytes_only_the_header_travels(server: Server) -> None:
    head = vocabulary(300_000)
    server.files["/m.gguf"] = Virtual(head=head, size=40 * GIGA)
    file = at(server)
    assert read_header(file).get("z") == 7
    assert len(head) <= file.bytes_read < 2 * len(head)
    assert file.requests <= 6
    for headers in server.asked("/m.gguf"):
        assert headers["Accept-Encoding"] == "identity"
    before = file.requests
    assert read_span(file, Span(offset=0, length=1000)) == head[:1000]
    assert file.requests == before  # what is here is not read again


def test_an_empty_file(server: Server) -> None:
    server.files["/m.gguf"] = b""
    with pytest.raises(MalformedError, match="the file is empty"):
        read_header(at(server))


def test_a_truncated_file(server: Server, nano: Path) -> None:
    server.files["/m.gguf"] = nano.read_bytes()[:5000]
    with pytest.raises(MalformedError, match=r"m\.gguf: .* \(at byte"):
        read_header(at(server))


def test_a_server_without_ranges_is_refused_with_the_size(server: Server, nano: Path) -> None:
    server.files["/m.gguf"], server.ranges = nano.read_bytes(), False
    with pytest.raises(StorageError, match=r"all of its 1\.3 MiB, is allowed by `whole`"):
        read_header(at(server))


def test_with_whole_it_is_read_as_far_as_is_needed(server: Server, nano: Path) -> None:
    content = nano.read_bytes()
    server.files["/m.gguf"] = Virtual(head=content, size=40 * GIGA)
    server.ranges = False
    file = at(server, whole=True)
    header = read_header(file)
    assert header.tensors == read_header(nano).tensors
    assert file.bytes_read < 1 << 20
    far, near = Span(offset=1_200_000, length=9), Span(offset=1_000_000, length=9)
    with file.open() as stream:
        for span in (far, near):  # back, too
            stream.seek(span.offset)
            assert stream.read(9) == content[span.offset : span.end]


def test_files_on_servers_are_compared(server: Server, nano: Path) -> None:
    server.files["/m.gguf"] = nano.read_bytes()
    difference = diff(at(server), nano)
    assert (difference.keys, difference.tensors) == ((), ())


def test_a_split_model_is_read_from_its_first_file(server: Server, tmp_path: Path) -> None:
    first = split(tmp_path)
    for file in tmp_path.glob("*.gguf"):
        server.files[f"/some%20folder/{file.name}"] = file.read_bytes()
    model = open_model(find(f"{server.url('/some%20folder/')}{first.name}?key=1"))
    assert model.tensors == open_model(first).tensors
    assert {path.partition("?")[2] for _, path, _ in server.requests} == {"key=1"}
    with pytest.raises(RequestError, match=f"name {first.name}"):
        open_model(at(server, "/some%20folder/" + first.name.replace("00001-", "00002-")))


def test_a_missing_part_of_a_split_model_is_named(server: Server, tmp_path: Path) -> None:
    first = split(tmp_path)
    server.files[f"/{first.name}"] = first.read_bytes()
    with pytest.raises(StorageError, match=r"-0000[23]-of-00003.gguf: the server answers 404"):
        open_model(at(server, f"/{first.name}"))


@pytest.mark.parametrize("change", ["tag", "size"])
def test_a_file_that_changes_meanwhile(server: Server, change: str) -> None:
    head = vocabulary(50_000)
    server.files["/m.gguf"] = Virtual(head=head, size=GIGA)

    def tag() -> str:
        if change == "size":
            server.files["/m.gguf"] = Virtual(head=head, size=2 * GIGA)
            return '"one"'
        return f'"{len(server.requests)}"'

    server.tag = tag
    with pytest.raises(StorageError, match="was changed while it was read; try again"):
        read_header(at(server))


LIES = {
    "less than it said": {"body": b"GGUF", "Content_Range": "bytes 0-99/100"},
    "more than it said": {"body": b"G" * 101, "Content_Range": "bytes 0-99/100"},
    "sends bytes 5 to 99": {"body": b"G" * 95, "Content_Range": "bytes 5-99/100"},
    "which bytes it sends": {"body": b"G" * 100},
    "does not say which": {"body": b"G", "Content_Range": "bytes 0-0/*"},
    "it sends": {"body": b"G", "Content_Range": f"bytes 0-0/{10**30}"},
    "encodes the file": {
        "body": b"\x1f\x8b" * 50, "Content_Range": "bytes 0-99/100", "Content_Encoding": "gzip",
    },
}  # fmt: skip


@pytest.mark.parametrize(("says", "answer"), LIES.items())
def test_answers_that_are_wrong(server: Server, says: str, answer: dict[str, object]) -> None:
    body = answer["body"]
    assert isinstance(body, bytes)
    headers = {name: value for name, value in answer.items() if name != "body"}
    server.answers["/m.gguf"] = lambda handler: send(handler, 206, body, **headers)
    with pytest.raises(StorageError, match=says):
        read_header(at(server))


def test_an_answer_that_breaks_off(server: Server) -> None:
    def answer(handler: object) -> None:
        spread = "bytes 0-99/100"
        send(handler, 206, b"GGUF", Content_Range=spread, Content_Length=100, Connection="close")

    server.answers["/m.gguf"] = answer
    with pytest.raises(StorageError, match=r"cannot read http://127\S+: "):
        read_header(at(server))


@pytest.mark.parametrize("status", [401, 403, 404, 416, 429, 500, 799])
def test_refusals_have_their_reason(server: Server, status: int) -> None:
    server.answers["/m.gguf"] = lambda handler: send(handler, status)
    with pytest.raises(StorageError, match=f"answers {status}|which bytes"):
        read_header(at(server))


def test_a_whole_file_of_unknown_length(server: Server) -> None:
    server.answers["/m.gguf"] = lambda handler: send(
        handler, 200, b"GGUF", Content_Length=None, Connection="close"
    )
    with pytest.raises(StorageError, match="does not say how long the file is"):
        read_header(at(server, whole=True))


def test_a_header_without_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_BYTES", 3 << 20)
    word = struct.pack("<Q", 1000) + bytes(1000)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    head += struct.pack("<Q", 1) + b"t" + struct.pack("<IIQ", 9, 8, 1 << 24)
    server.files["/m.gguf"] = Virtual(head=head, size=1 << 50, tail=word)
    file = at(server)
    with pytest.raises(StorageError, match=r"more than 3\.0 MiB would be read"):
        read_header(file)
    assert file.bytes_read <= 3 << 20


@pytest.mark.parametrize("where", ["body", "headers"])
def test_a_server_that_never_ends(
    server: Server, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(remote, "BLOCK_SECONDS", 0.3)

    def headers(handler: object) -> None:
        stream = handler.wfile  # type: ignore[attr-defined]
        stream.write(b"HTTP/1.1 206 Partial Content\r\n")
        for _ in range(600):
            stream.write(b"X: y\r\n")
            time.sleep(0.05)

    server.answers["/m.gguf"] = drip if where == "body" else headers
    with pytest.raises(StorageError, match="the server is too slow; try again"):
        read_header(at(server))


def test_redirects_are_followed_once(server: Server) -> None:
    server.files["/there.gguf"] = Virtual(head=vocabulary(50_000), size=GIGA)
    server.answers["/m.gguf"] = redirect("there.gguf?signature=secret")
    file = at(server)
    read_header(file)
    assert len(server.asked("/m.gguf")) == 1
    assert len(server.asked("/there.gguf")) > 1
    assert "secret" not in f"{file} {file!r}"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("file:///etc/passwd", "redirects to file://"),
        ("ftp://127.0.0.1/m.gguf", "redirects to ftp://127.0.0.1"),
        ("http://192.0.2.1/m.gguf", r"redirects to http://192\.0\.2\.1"),
        ("http://[::1", "Invalid URL in location header|redirected to no address"),
        ("m.gguf", "redirects more than 8 times"),
    ],
)
def test_redirects_that_are_not_followed(server: Server, target: str, says: str) -> None:
    server.answers["/m.gguf"] = redirect(target)
    with pytest.raises(StorageError, match=says):
        read_header(at(server))


def test_credentials_go_to_their_server_alone(server: Server, nano: Path) -> None:
    with serve() as other:
        other.files["/there.gguf"] = nano.read_bytes()
        server.answers["/m.gguf"] = redirect(other.url("/there.gguf"))
        file = find(server.url("/m.gguf", "user:se%20cret@"))
        assert isinstance(file, RemoteFile)
        read_header(file)
        (mine,), (theirs,) = server.asked("/m.gguf"), other.asked("/there.gguf")
    assert mine["Authorization"] == "Basic dXNlcjpzZSBjcmV0"
    assert "Authorization" not in theirs
    assert "cret" not in f"{file} {file!r}"


def test_credentials_stay_with_redirects_of_their_server(server: Server, nano: Path) -> None:
    server.files["/there.gguf"] = nano.read_bytes()
    server.answers["/m.gguf"] = redirect(server.url("/there.gguf", "x:y@"))
    file = find(server.url("/m.gguf", "user:secret@"))
    assert isinstance(file, RemoteFile)
    read_header(file)
    (headers,) = server.asked("/there.gguf")
    assert headers["Authorization"] == "Basic dXNlcjpzZWNyZXQ="


@pytest.mark.parametrize(
    "name",
    [
        "http://example.org/m.gguf", "http://192.0.2.7/m.gguf", "https://", "https:///m.gguf",
        "https://example.org", "https://example.org/", "https://example.org/..",
        "https://example.org/a%2F..%2Fb", "https://example.org:port/m.gguf", "https://[::1/m.gguf",
    ],
)  # fmt: skip
def test_addresses_that_are_not_read(name: str) -> None:
    with pytest.raises(RequestError):
        find(name)


def test_messages_have_no_credentials(server: Server) -> None:
    address = server.url("/gone.gguf?token=hidden", "user:secret@")
    for call in (lambda: read_header(find(address)), lambda: locate(address)):
        with pytest.raises(FileError) as raised:
            call()
        assert "/gone.gguf" in str(raised.value)
        assert "secret" not in str(raised.value)
        assert "hidden" not in str(raised.value)
    for name in (
        "http://user:secret@example.org/m.gguf?token=hidden",
        "HTTP://user:secret@example.org/m.gguf?token=hidden",
        "ftp://user:secret@example.org/m.gguf?token=hidden",
        "https://user:secret/hidden@example.org/m.gguf",
    ):
        with pytest.raises(RequestError) as refused:
            find(name)
        assert "secret" not in str(refused.value)
        assert "hidden" not in str(refused.value)
    with pytest.raises(RequestError, match="expected hf:OWNER") as refused:
        fetch("https://user:secret@example.org/m.gguf?token=hidden")
    assert "secret" not in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_a_scheme_may_be_in_capitals(server: Server, nano: Path) -> None:
    server.files["/m.gguf"] = nano.read_bytes()
    assert isinstance(find(server.url("/m.gguf").replace("http", "HTTP")), RemoteFile)


@pytest.mark.parametrize(
    ("path", "output"), [("a%20b/m.gguf", "-O"), ("n%20x.gguf", "-o 'n x.gguf'")]
)
def test_a_download_makes_the_file_that_commands_name(path: str, output: str) -> None:
    address = f"https://example.org/{path}"
    file = find(address)
    assert isinstance(file, RemoteFile)
    assert shlex.join(file.download) == f"curl -f -L {output} {address}"
