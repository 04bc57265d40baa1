"""Faults of servers: each is one line with the reason, retries end, and nothing secret is shown."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from ggufrope.errors import RequestError
from ggufrope.server.address import Credentials, is_loopback, normal_address, split_login
from ggufrope.server.client import Client, ServerError

Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler, **settings: Any) -> Client:
    return Client("http://a.test", transport=httpx.MockTransport(handler), **settings)


def in_turn(*answers: httpx.Response | Exception) -> Handler:
    """Answers in order, the last one for ever."""
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        return found

    return answer


def refused(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("[Errno 111] Connection refused")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(404, json={"error": "Not Found"}), "HTTP 404: Not Found"),
        (httpx.Response(401, json={"detail": "Invalid API key"}), "Invalid API key; set GGUFROPE"),
        (httpx.Response(403), "HTTP 403: Forbidden; set GGUFROPE_API_KEY"),
        (httpx.Response(500, json={"error": {"message": "out of\nmemory"}}), "500: out of memory"),
        (httpx.Response(200, html="<html>hi</html>"), "expected JSON, got (an HTML page"),
        (httpx.Response(200, text="{"), "expected JSON, got (text/plain)"),
        (httpx.Response(200, content=b"\xff\xfe"), "expected JSON"),
        (httpx.Response(200, content=b"[" * 100_000), "expected JSON"),
        (httpx.Response(500, content=b"[" * 100_000), "HTTP 500: Internal Server Error"),
        (httpx.Response(302, headers={"location": "http://b.test/"}), "redirects to http://b.test"),
    ],
)
def test_what_is_no_answer_says_why(answer: httpx.Response, words: str) -> None:
    with pytest.raises(ServerError) as caught:
        client(lambda request: answer).get("/x")
    assert words in str(caught.value)
    assert str(caught.value).startswith("http://a.test/x: ")
    assert "\n" not in str(caught.value)


def test_a_redirect_is_not_followed() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(307, headers={"location": "http://b.test/"})

    with pytest.raises(ServerError):
        client(answer).post("/x", {})
    assert asked == ["a.test"]


def test_a_server_that_is_not_there_fails_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(ServerError, match="no server there"):
        client(refused).get("/x")
    assert time.monotonic() - began < 5


def test_a_server_that_restarts_is_waited_for() -> None:
    one = client(
        in_turn(
            httpx.Response(200, json=1), httpx.ConnectError("gone"), httpx.Response(200, json=2)
        )
    )
    assert one.get("/x") == 1
    assert not one.lost
    assert one.get("/x") == 2
    assert one.lost


def test_a_server_that_does_not_come_back_is_waited_for_no_longer_than_allowed() -> None:
    one = client(in_turn(httpx.Response(200, json=1), httpx.ReadError("gone")), patience_seconds=1)
    one.get("/x")
    began = time.monotonic()
    with pytest.raises(ServerError, match="the connection ended early"):
        one.get("/x")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(status: int) -> None:
    busy = httpx.Response(status, headers={"retry-after": "0"})
    assert client(in_turn(busy, busy, httpx.Response(200, json=1))).get("/x") == 1
    with pytest.raises(ServerError, match=f"HTTP {status}"):
        client(lambda request: busy, patience_seconds=0.3).get("/x")


def test_a_busy_server_that_names_no_pause_is_not_asked_without_one() -> None:
    asked = []

    def busy(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(429, headers={"retry-after": "0"})

    with pytest.raises(ServerError, match="HTTP 429"):
        client(busy, patience_seconds=0.5).get("/x")
    assert len(asked) < 50


def test_an_error_with_the_status_of_a_success_is_one() -> None:
    crashed = httpx.Response(200, json={"error": {"message": "model crashed"}})
    with pytest.raises(ServerError, match="/x: model crashed"):
        client(lambda request: crashed).post("/x", {})


def test_half_a_pair_of_surrogates_is_replaced() -> None:
    answer = httpx.Response(200, content=rb'["\ud83d", "\ud83d\ude00"]')
    assert client(lambda request: answer).get("/x") == ["?", "\U0001f600"]


def test_a_pause_that_is_too_long_is_not_taken() -> None:
    busy = httpx.Response(429, headers={"retry-after": "3600"}, json={"error": "slow down"})
    began = time.monotonic()
    with pytest.raises(ServerError, match="HTTP 429: slow down"):
        client(lambda request: busy, patience_seconds=5).get("/x")
    assert time.monotonic() - began < 4


def test_silence_is_not_asked_again() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        raise httpx.ReadTimeout("")

    with pytest.raises(
        ServerError, match="no answer within 1m 30s; give a longer `timeout_seconds`"
    ):
        client(answer, timeout_seconds=90).get("/x")
    assert len(asked) == 1


def test_tls_that_fails_is_named() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")

    with pytest.raises(ServerError, match=r"TLS failed: .*CERTIFICATE_VERIFY_FAILED"):
        Client("https://a.test", transport=httpx.MockTransport(answer)).get("/x")


def test_tls_to_a_server_without_is_one_line() -> None:
    with plain_server() as port, pytest.raises(ServerError, match=r"TLS failed|ended early"):
        Client(f"https://127.0.0.1:{port}", patience_seconds=0).get("/x")


class plain_server:  # noqa: N801 (a context manager)
    """A socket that answers no TLS."""

    def __enter__(self) -> int:
        import socket

        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return int(self._socket.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return
        with connection:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def events(*lines: str) -> httpx.Response:
    def body() -> Iterator[bytes]:
        for line in lines:
            if line == "break":
                raise httpx.RemoteProtocolError("incomplete chunked read")
            yield f"{line}\n\n".encode()

    return httpx.Response(200, content=body())


def test_a_stream_is_read_to_its_end() -> None:
    seen: list[Any] = []
    answer = events('data: {"a": 1}', ": a comment", 'data: {"a": 2}', "data: [DONE]")
    found = client(lambda request: answer).stream("/x", {}, seen.append)
    assert found == seen == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("text", ["\u2028", "\x85", "\u2029", "\x0b", "\x0c"])
def test_only_returns_and_line_feeds_end_a_line_of_a_stream(text: str) -> None:
    body = f'data:{{"a": "{text}"}}\r\rdata: {{"b": 1, "error": null}}\r\n'
    body = body.replace(text, json.dumps(text)[1:-1]) if text < " " else body
    data = body.encode()
    for size in (1, 5, len(data)):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        one = client(in_turn(httpx.Response(200, content=iter(pieces))))
        found = one.stream("/x", {}, lambda _: None)
        assert found == [{"a": text}, {"b": 1, "error": None}]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (('data: {"a": 1}', "break"), "the connection ended early"),
        (('data: {"error": {"message": "no memory"}}',), "no memory"),
        (('error: {"message": "no memory"}',), "no memory"),
        (('data: {"a"',), "expected JSON"),
        (("data: 5",), "expected an object"),
        (("data: [1]",), "expected an object"),
    ],
)
def test_a_stream_that_fails_is_an_error(lines: tuple[str, ...], words: str) -> None:
    with pytest.raises(ServerError, match=words):
        client(lambda request: events(*lines), patience_seconds=0).stream("/x", {}, lambda _: None)


def test_an_answer_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggufrope.server.client._MOST_BYTES", 1000)
    with pytest.raises(ServerError, match="the answer is longer"):
        client(lambda request: httpx.Response(200, text="x" * 2000)).get("/x")
    many = events(*['data: {"a": 1}'] * 200)
    with pytest.raises(ServerError, match="has no end"):
        client(lambda request: many).stream("/x", {}, lambda _: None)


def test_a_key_is_sent_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGUFROPE_API_KEY", "sk-secret")
    given = Credentials.from_environment()
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(401)

    with pytest.raises(ServerError) as caught:
        client(answer, credentials=given).get("/x")
    assert seen == ["Bearer sk-secret"]
    assert "secret" not in f"{caught.value}{given}"
    monkeypatch.setenv("GGUFROPE_API_KEY", "a\nb")
    with pytest.raises(RequestError, match="GGUFROPE_API_KEY has characters"):
        Credentials.from_environment()


def test_credentials_that_the_server_repeats_are_not_shown() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        sent = request.headers["authorization"]
        if request.url.path == "/moved":
            return httpx.Response(302, headers={"location": f"http://b.test/?{sent}"})
        words = f"{290 * 'x'} {sent}" if request.url.path == "/far" else f"headers: {sent}"
        return httpx.Response(400, json={"error": {"message": words}})

    for given in (Credentials(key="sk-secret"), Credentials(login=("me", "sk-secret"))):
        for path in ("/x", "/moved", "/far"):
            with pytest.raises(ServerError) as caught:
                client(answer, credentials=given).get(path)
            assert "sk-" not in str(caught.value)
            assert "bWU6" not in str(caught.value)


def test_a_key_and_a_login_are_not_both_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGUFROPE_API_KEY", "sk-secret")
    monkeypatch.setenv("GGUFROPE_SERVER_LOGIN", "me:pw")
    with pytest.raises(RequestError, match="unset GGUFROPE_API_KEY, or give no") as caught:
        Credentials.from_environment()
    assert "sk-" not in str(caught.value)


def test_neither_proxies_nor_other_credentials_are_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    seen: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200, json=1)

    assert client(answer).get("/x") == 1
    assert "authorization" not in seen[0]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://localhost:8080", "http://localhost:8080"),
        (" http://localhost:8080/v1/ ", "http://localhost:8080"),
        ("https://a.test/llm/v1", "https://a.test/llm"),
        ("http://[::1]:11434", "http://[::1]:11434"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    assert normal_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "localhost:8080",
        "ftp://a.test",
        "http://",
        "http://a.test:99999",
        "http://a b",
        "http://a\nb",
        "http://me:secret@",
        "http://me:secret@a.test:x",
    ],
)
def test_what_is_no_address_is_refused_and_no_secret_shown(text: str) -> None:
    with pytest.raises(RequestError, match="`server`") as caught:
        normal_address(text)
    assert "secret" not in str(caught.value)


def test_credentials_in_an_address_are_kept_out_of_it() -> None:
    assert split_login("http://me:s%20t@a.test:1/v1") == ("http://a.test:1/v1", "me:s t")
    assert split_login("http://a.test") == ("http://a.test", None)
    for text in ("http://me:secret@a.test", "http://a.test/?key=secret", "http://a.test/#secret"):
        with pytest.raises(RequestError) as caught:
            normal_address(text)
        assert "secret" not in str(caught.value)


def test_loopback() -> None:
    assert all(map(is_loopback, ["http://localhost:1", "http://127.0.0.2", "http://[::1]:1"]))
    assert not any(map(is_loopback, ["http://a.test", "http://localhost.test"]))


def test_certificates_are_verified_as_the_system_does() -> None:
    context = Client("https://a.test")._client._transport._pool._ssl_context
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
