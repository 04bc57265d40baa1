"""A server of this machine for the tests: files by path, and the ways in which one misbehaves."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Virtual:
    """A file that begins with `head`, goes on with `tail` over and over, and has `size` bytes."""

    head: bytes
    size: int
    tail: bytes = b"\0"

    def part(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end`."""
        end = min(end, self.size)
        kept = self.head[start:end]
        at = start + len(kept)
        shift = (at - len(self.head)) % len(self.tail)
        count = max(0, end - at)
        return kept + (self.tail * (count // len(self.tail) + 2))[shift : shift + count]


@dataclass
class Server:
    """What a server answers, and what it was asked: (method, path, headers) of each request.

    `answers` are functions by path that answer a request themselves. `tag` is called for the ETag.
    """

    files: dict[str, bytes | Virtual] = field(default_factory=dict)
    answers: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    ranges: bool = True
    tag: Callable[[], str] = lambda: '"one"'
    requests: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    port: int = 0

    def url(self, path: str, credentials: str = "") -> str:
        """Return the address of a path, with `USER:PASSWORD@` in front of the host."""
        return f"http://{credentials}127.0.0.1:{self.port}{path}"

    def asked(self, path: str) -> list[Mapping[str, str]]:
        """Return the headers of each request for a path."""
        return [headers for _, asked, headers in self.requests if asked.split("?")[0] == path]


def send(handler: Any, status: int, body: bytes = b"", **headers: object) -> None:
    """Answer a request; an underscore in the name of a header is a dash."""
    handler.send_response(status)
    for name, value in ({"Content_Length": len(body)} | headers).items():
        if value is not None:
            handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(body)


def redirect(url: str) -> Callable[[Any], None]:
    """Return what answers with a redirect."""
    return lambda handler: send(handler, 302, Location=url)


def drip(handler: Any) -> None:
    """Begin to answer, and send a byte now and then, for as long as anybody listens."""
    handler.send_response(206)
    handler.send_header("Content-Range", "bytes 0-262143/1000000")
    handler.end_headers()
    for _ in range(600):
        handler.wfile.write(b"G")
        time.sleep(0.05)


@contextmanager
def serve() -> Iterator[Server]:
    """Run a server on a free port of this machine."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append((self.command, self.path, dict(self.headers)))
            path = self.path.split("?")[0]
            with suppress(OSError):  # whoever asked has hung up
                if path in state.answers:
                    state.answers[path](self)
                elif path in state.files:
                    self._send_file(state.files[path])
                else:
                    send(self, 404)

        def do_HEAD(self) -> None:
            self.do_GET()

        def _send_file(self, file: bytes | Virtual) -> None:
            whole = file if isinstance(file, Virtual) else Virtual(head=file, size=len(file))
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if not (state.ranges and asked):
                self.send_response(200)
                self.send_header("Content-Length", str(whole.size))
                self.end_headers()
                for start in range(0, whole.size, 1 << 16):
                    self.wfile.write(whole.part(start, start + (1 << 16)))
                return
            start, end = int(asked[1]), min(int(asked[2]) + 1, whole.size)
            if start >= whole.size:
                send(self, 416, Content_Range=f"bytes */{whole.size}")
                return
            spread = f"bytes {start}-{end - 1}/{whole.size}"
            send(self, 206, whole.part(start, end), Content_Range=spread, ETag=state.tag())

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Whoever asked has hung up."""

    with Quiet(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_address[1]
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
