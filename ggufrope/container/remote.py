"""A file on a server, of which only the parts that are needed are read.

`RemoteFile.open` gives a stream to seek and read in, as of a file on disk. Behind it stand HTTP
range requests for blocks that grow, and every block is kept. A server is as little to be trusted as
a file: what it says of sizes and ranges is compared with what it sends, no encoded body is decoded,
and limits hold for bytes, time and redirects. Credentials go to the server that they are for alone,
and no message has them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ggufrope._files import is_component
from ggufrope._format import byte_size
from ggufrope.errors import MissingDependencyError, RequestError, StorageError

if TYPE_CHECKING:
    import os
    import socket
    from collections.abc import Iterator

    import httpx
    from typing_extensions import Self


FIRST_BLOCK = 1 << 18
"""Bytes of the first request for a file. Each further one is twice as long, up to LARGEST_BLOCK: a
header of 16 MiB takes seven."""
LARGEST_BLOCK = 4 << 20
MAX_BYTES = 128 << 20
"""Of one file; the longest header known has 20 MiB."""
MAX_REDIRECTS = 8
BLOCK_SECONDS = 120.0
"""For one block: a server that sends a byte now and then keeps nobody forever."""
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 30.0
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the bytes of a file are: `url` without credentials, and what to send as `authorization`
    to the server at `origin` (scheme, host, port), and to no other."""

    url: httpx.URL
    origin: tuple[str, str, int | None]
    authorization: str | None = None


class RemoteFile(ABC):
    """A file on a server; `str` of it names it without credentials. Nothing is read before `open`.

    With `whole`, a server that knows no ranges may send the file from its start. `requests` and
    `bytes_read` count what has traveled so far; `size` is the size of the file, None before the
    first answer. `tag` shows whether the file has changed since.
    """

    def __init__(self, *, shown: str, name: str, whole: bool) -> None:
        self.name = name
        self.whole = whole
        self.requests = 0
        self.bytes_read = 0
        self.size: int | None = None
        self.tag: str | None = None
        self.next_block = FIRST_BLOCK
        self._shown = shown
        self._address: Address | None = None
        self._blocks: list[tuple[int, bytes]] = []

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown!r})"

    @abstractmethod
    def with_name(self, name: str) -> RemoteFile:
        """Return the file of that name beside this one."""

    @property
    @abstractmethod
    def download(self) -> tuple[str, ...]:
        """The words of a command that brings the whole file here."""

    @property
    @abstractmethod
    def name_here(self) -> str:
        """How commands name the file once it is here."""

    @abstractmethod
    def find_address(self) -> Address:
        """Return where the file is. Raises StorageError where the server does not have it."""

    @property
    def kept_bytes(self) -> int:
        """How much of the file is kept here."""
        return sum(len(block) for _, block in self._blocks)

    @property
    def address(self) -> Address:
        """Where the file is, as far as that is known by now: redirects are followed once."""
        if self._address is None:
            self._address = self.find_address()
        return self._address

    def moved_to(self, url: httpx.URL) -> None:
        """Go straight to `url` from now on."""
        self._address = Address(
            url=url, origin=self.address.origin, authorization=self.address.authorization
        )

    def open(self, mode: Literal["rb"] = "rb") -> RemoteStream:
        """Return a stream of the file; it connects when it reads what is not here yet."""
        return RemoteStream(self)

    def kept(self, offset: int) -> bytes:
        """Return the bytes from `offset` on that were read before; nothing where there are none."""
        for start, block in self._blocks:
            if start <= offset < start + len(block):
                return block[offset - start :]
        return b""

    def keep(self, offset: int, block: bytes) -> None:
        """Keep a block that was read."""
        self._blocks.append((offset, block))
        self.next_block = min(2 * self.next_block, LARGEST_BLOCK)


Place: TypeAlias = "Path | RemoteFile"
"""Where a model file is: on disk, or on a server."""
FileName: TypeAlias = "str | os.PathLike[str] | RemoteFile"


def place_of(name: FileName) -> Place:
    """Return a path as a Path, and a remote file as it is."""
    return name if isinstance(name, RemoteFile) else Path(name)


def local(place: Place) -> Path:
    """Return the path of a file on disk. Raises StorageError for one on a server."""
    if isinstance(place, RemoteFile):
        import shlex

        raise StorageError(
            f"{place} is not on this disk, and this needs the whole file; bring it here with "
            f"`{shlex.join(place.download)}`"
        )
    return place


class WebFile(RemoteFile):
    """A file at an `https:` address, or an `http:` one on this machine.

    Raises RequestError for any other address.
    """

    def __init__(self, address: str, *, whole: bool = False) -> None:
        try:
            parts = urlsplit(address)
            host, port = parts.hostname or "", parts.port
        except ValueError:  # which may have a part of a password in it
            raise RequestError(
                "the address of the model cannot be read: expected https://HOST/PATH/FILE"
            ) from None
        place = (f"[{host}]" if ":" in host else host) + ("" if port is None else f":{port}")
        shown = urlunsplit((parts.scheme, place, parts.path, "", ""))
        name = unquote(parts.path.rpartition("/")[2])
        if not host or not is_component(name):
            raise RequestError(f"{shown}: expected https://HOST/PATH/FILE")
        if not is_allowed(parts.scheme, host, may_be_local=True):
            raise RequestError(
                f"{shown}: only https: addresses are read, and http: ones of this machine"
            )
        super().__init__(shown=shown, name=name, whole=whole)
        self._parts = parts
        self._url = urlunsplit((parts.scheme, place, parts.path, parts.query, ""))

    def with_name(self, name: str) -> WebFile:
        folder, slash, _ = self._parts.path.rpartition("/")
        beside = self._parts._replace(path=f"{folder}{slash}{quote(name)}")
        return WebFile(urlunsplit(beside), whole=self.whole)

    @property
    def download(self) -> tuple[str, ...]:
        # Of a path with %20, -O makes a file with %20 in its name.
        output = ("-O",) if quote(self.name) == self.name else ("-o", self.name)
        return ("curl", "-f", "-L", *output, str(self))

    @property
    def name_here(self) -> str:
        return self.name

    def find_address(self) -> Address:
        httpx, parts = http_library(), self._parts
        url = httpx.URL(self._url)
        authorization = None
        if parts.username is not None:
            from base64 import b64encode

            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            authorization = f"Basic {b64encode(pair).decode()}"
        return Address(url=url, origin=origin_of(url), authorization=authorization)


def http_library() -> Any:
    """Return httpx. Raises MissingDependencyError where it is not installed."""
    try:
        import httpx
    except ImportError as error:
        raise MissingDependencyError(
            "files on a server need httpx: pip install 'ggufrope[remote]'"
        ) from error
    return httpx


def origin_of(url: httpx.URL) -> tuple[str, str, int | None]:
    """Return scheme, host and port of an address: credentials for one are for no other."""
    return url.scheme, url.host, url.port


def is_allowed(scheme: str, host: str, *, may_be_local: bool) -> bool:
    """Return whether an address may be read: `https:`, and with `may_be_local` `http:` on this
    machine."""
    return scheme == "https" or (scheme == "http" and may_be_local and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    from ipaddress import ip_address  # these and others are for those who read from a server

    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _without_credentials(url: httpx.URL) -> httpx.URL:
    return url.copy_with(userinfo=b"", fragment=None)


class RemoteStream:
    """A stream of a remote file, forwards and backwards; a context manager, which disconnects."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._at = 0
        self._client: httpx.Client | None = None
        self._answered = ExitStack()
        self._pieces: Iterator[bytes] | None = None
        self._ahead = b""
        self._passed = 0
        self._sockets: list[socket.socket] = []
        self._late = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._answered.close()
        if self._client is not None:
            self._client.close()

    @property
    def size(self) -> int:
        """The size of the file. Raises StorageError where the server does not say."""
        if self._file.size is None:
            self._load(0, 1)
        return self._file.size or 0

    def seek(self, offset: int) -> int:
        """Go to a byte of the file."""
        self._at = offset
        return offset

    def read(self, length: int) -> bytes:
        """Read `length` bytes, fewer at the end of the file.

        Raises StorageError where the server fails, or contradicts itself or the file that it had
        before, or more would be read than any header has.
        """
        left = min(length, self.size - self._at)
        pieces = []
        while left > 0:
            piece = (self._file.kept(self._at) or self._load(self._at, left))[:left]
            pieces.append(piece)
            self._at += len(piece)
            left -= len(piece)
        return b"".join(pieces)

    def _load(self, offset: int, least: int) -> bytes:
        """Read a block at `offset`, of `least` bytes or more where the file has them."""
        file, httpx = self._file, http_library()
        length = max(least, file.next_block)
        if file.size is not None:
            length = min(length, file.size - offset)
        if file.kept_bytes + length > MAX_BYTES:
            raise StorageError(
                f"{file}: more than {byte_size(MAX_BYTES)} would be read, and no header is so long"
            )
        try:
            if self._pieces is None:
                with self._in_time():
                    block = self._range(offset, length)
            else:
                block = self._take(offset, length)
        except (httpx.HTTPError, StorageError) as error:
            if self._late:
                raise StorageError(
                    f"cannot read {file}: the server is too slow; try again"
                ) from None
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"cannot read {file}: {_reason(error)}") from None
        except httpx.InvalidURL:
            raise StorageError(f"cannot read {file}: it is redirected to no address") from None
        file.keep(offset, block)
        return block

    def _range(self, offset: int, length: int) -> bytes:
        """Ask for a range. A server that sends the whole file instead may, with `whole`."""
        file = self._file
        response = self._answered.enter_context(self._answer(offset, length))
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.strip().lower() != "identity":
            raise StorageError(
                f"{file}: the server encodes the file, although the request forbids it"
            )
        status = response.status_code
        if status == HTTPStatus.OK:
            return self._whole(response, offset, length)
        with self._answered:
            if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset == 0:
                _, _, total = self._content_range(response)
                if total == 0:
                    self._is_the_same(response, total)
                    return b""
            if status != HTTPStatus.PARTIAL_CONTENT:
                raise StorageError(f"cannot read {file}: {_refusal(status)}")
            start, end, total = self._content_range(response)
            self._is_the_same(response, total)
            wanted = min(length, total - offset)
            if (start, end) != (offset, offset + wanted - 1):
                raise StorageError(
                    f"{file}: the server sends bytes {start} to {end} where {offset} to "
                    f"{offset + wanted - 1} were asked for"
                )
            return self._received(response, wanted)

    def _received(self, response: httpx.Response, length: int) -> bytes:
        received = bytearray()
        for piece in response.iter_raw():
            received += piece
            self._file.bytes_read += len(piece)
            if len(received) > length:
                raise StorageError(f"{self._file}: the server sends more than it said")
        if len(received) < length:
            raise StorageError(f"{self._file}: the server sends less than it said; try again")
        return bytes(received)

    def _content_range(self, response: httpx.Response) -> tuple[int, int, int]:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if found is None:
            raise StorageError(f"{self._file}: the server does not say which bytes it sends")
        return int(found[1] or 0), int(found[2] or 0), int(found[3])

    def _is_the_same(self, response: httpx.Response, size: int) -> None:
        """Note what shows a change of the file. Raises StorageError where it has changed."""
        file = self._file
        tag = response.headers.get("etag") or response.headers.get("last-modified") or ""
        if file.size is None:
            file.size, file.tag = size, tag
        elif (file.size, file.tag) != (size, tag):
            raise StorageError(f"{file} was changed while it was read; try again")

    def _whole(self, response: httpx.Response, offset: int, length: int) -> bytes:
        """Begin to read a file that comes from its start; it goes on as far as is needed."""
        file, said = self._file, response.headers.get("content-length", "")
        if not re.fullmatch(r"\d{1,18}", said):
            raise StorageError(f"{file}: the server does not say how long the file is")
        if not file.whole:
            raise StorageError(
                f"{file}: the server does not send parts of a file; reading it from its start, up "
                f"to all of its {byte_size(int(said))}, is allowed by `whole`"
            )
        self._is_the_same(response, int(said))
        self._pieces, self._ahead, self._passed = response.iter_raw(), b"", 0
        return self._take(offset, length)

    def _take(self, offset: int, length: int) -> bytes:
        """Return bytes of a file that comes from its start, which starts over to go back."""
        if offset < self._passed or self._pieces is None:
            self._answered.close()
            self._pieces = None
            return self._range(offset, length)
        taken = bytearray()
        length = min(length, (self._file.size or 0) - offset)
        while len(taken) < length:
            if not self._ahead:
                self._ahead = next(self._pieces, b"")
                self._file.bytes_read += len(self._ahead)
            if not self._ahead:
                raise StorageError(f"{self._file}: the server sends less than it said; try again")
            skipped = self._ahead[: max(0, offset - self._passed)]
            piece = self._ahead[len(skipped) : len(skipped) + length - len(taken)]
            taken += piece
            self._passed += len(skipped) + len(piece)
            self._ahead = self._ahead[len(skipped) + len(piece) :]
        return bytes(taken)

    @contextmanager
    def _answer(self, offset: int, length: int) -> Iterator[httpx.Response]:
        """Ask for a range, and follow redirects to what may be read. The body is not read yet."""
        file, address = self._file, self._file.address
        url = address.url
        may_be_local = address.origin[0] == "http"
        for _ in range(MAX_REDIRECTS + 1):
            headers = {
                "Accept-Encoding": "identity",
                "User-Agent": "ggufrope",
                "Range": f"bytes={offset}-{offset + length - 1}",
            }
            if address.authorization is not None and origin_of(url) == address.origin:
                headers["Authorization"] = address.authorization
            file.requests += 1
            request = self._connected().stream(
                "GET", url, headers=headers, extensions={"trace": self._note_socket}
            )
            with request as response:
                if not response.has_redirect_location:
                    if url != address.url:
                        file.moved_to(url)
                    yield response
                    return
                url = _without_credentials(url.join(response.headers["location"]))
            if not is_allowed(url.scheme, url.host, may_be_local=may_be_local):
                raise StorageError(f"{file}: the server redirects to {url.scheme}://{url.host}")
        raise StorageError(f"{file}: the server redirects more than {MAX_REDIRECTS} times")

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Hang up when the block takes too long: httpx bounds the time of each part, not of all."""
        timer = Timer(BLOCK_SECONDS, self._hang_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _hang_up(self) -> None:
        from socket import SHUT_RDWR

        self._late = True
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(SHUT_RDWR)

    def _note_socket(self, event: str, details: dict[str, Any]) -> None:
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._sockets.append(details["return_value"].get_extra_info("socket"))

    def _connected(self) -> httpx.Client:
        if self._client is None:
            httpx = http_library()
            timeout = httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS)
            # A proxy is for other machines than this one.
            here = ("all://localhost", "all://127.0.0.1", "all://[::1]")
            self._client = httpx.Client(timeout=timeout, mounts=dict.fromkeys(here))
        return self._client


def _refusal(status: int) -> str:
    """Return what a status means, in words."""
    known = {each.value: each.phrase for each in HTTPStatus}
    hint = {
        401: "; it needs credentials",
        403: "; it needs credentials, or others",
        429: "; try again later",
    }
    return f"the server answers {status} {known.get(status, '')}".rstrip() + hint.get(status, "")


def _reason(error: Exception) -> str:
    """Return what went wrong on the way, in the words of httpx, without an address."""
    return re.sub(r"\w+://\S+", "…", str(error)) or type(error).__name__
