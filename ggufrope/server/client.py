"""HTTP to one server: JSON in and out, retries that end, and every fault as a ServerError.

Nothing but the given address is contacted: redirects are not followed, and neither proxies nor
credentials are taken from the environment except those of `address.Credentials`. A request that a
server refuses for now (429, 503 while it loads), or that finds no server because it restarts, is
repeated with growing pauses until `patience_seconds` are over. One that takes longer than
`timeout_seconds` without a word is not: a prompt that takes too long once does so again.
"""

from __future__ import annotations

import json
import re
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ggufrope._format import duration
from ggufrope.errors import BackendError, MissingDependencyError
from ggufrope.server.address import KEY_VARIABLE, LOGIN_VARIABLE, Credentials

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState, Retrying

Json: TypeAlias = dict[str, Any]
T = TypeVar("T")

TIMEOUT_SECONDS = 1800.0
"""Default of the longest silence: a long prompt takes a CPU many minutes, and most servers say
nothing until it is done."""
PATIENCE_SECONDS = 120.0
"""How long a request is repeated that a server refuses for now."""
_CONNECT_SECONDS = 10.0
_LONGEST_PAUSE = 15.0
_MOST_BYTES = 64 << 20
"""Of an answer: the tokens of the longest prompt in JSON take less."""
_BUSY = (429, 503)
_REASON_CHARACTERS = 300


class ServerError(BackendError):
    """A server did not answer as asked; `status` is that of HTTP, `body` what came with it."""

    def __init__(self, message: str, *, status: int | None = None, body: Json | None = None):
        super().__init__(message)
        self.status = status
        self.body = body or {}


class _LostError(ServerError):
    """The connection failed: there is no server, or it ended in the middle of an answer."""


class _BusyError(ServerError):
    """The server refuses for now; `wait_seconds` is how long it says to wait at least."""

    wait_seconds = 0.0


class Client:
    """One server. `transport` takes the place of the network, for tests.

    `lost` is set when a connection failed and a later one did not: what answers may be another
    server. For any number of threads.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: Credentials | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Prepare, and contact nothing. Raises MissingDependencyError without httpx."""
        try:
            import httpx
            import tenacity
        except ImportError as error:
            raise MissingDependencyError(
                "a server needs httpx and tenacity: pip install 'ggufrope[server]'"
            ) from error
        given = credentials or Credentials()
        self._secrets = _secrets(given)
        self.address = address
        self.lost = False
        self._patience_seconds = patience_seconds
        self._answered = False
        self._timeout_seconds = timeout_seconds
        self._tenacity = tenacity
        self._httpx = httpx
        self._client = httpx.Client(
            auth=given.login,
            headers={"Authorization": f"Bearer {given.key}"} if given.key else None,
            timeout=httpx.Timeout(timeout_seconds, connect=min(_CONNECT_SECONDS, timeout_seconds)),
            limits=httpx.Limits(max_connections=None),
            follow_redirects=False,
            trust_env=False,
            transport=transport,
            verify=ssl.create_default_context() if address.startswith("https") else True,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str, **parameters: str) -> Any:
        """Return the JSON at a path. Raises ServerError."""
        return self._repeated(lambda: self._once("GET", path, params=parameters or None))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON that answers a body. Raises ServerError, also where an error comes with
        the status of a success."""
        answer = self._repeated(lambda: self._once("POST", path, json=body))
        if isinstance(answer, dict) and answer.get("error"):
            raise self._error(path, answer)
        return answer

    def stream(
        self, path: str, body: Mapping[str, Any], on_event: Callable[[Json], None]
    ) -> list[Json]:
        """Return the events of a stream (server-sent events) that answers a body; `on_event` is
        called with each as it comes. Raises ServerError."""
        return self._repeated(lambda: self._streamed(path, body, on_event))

    def _repeated(self, attempt: Callable[[], T]) -> T:
        failed = False
        for one in self._retrying():
            with one:
                try:
                    answer = attempt()
                except _LostError:
                    failed = True
                    raise
        self.lost = self.lost or failed
        self._answered = True
        return answer

    def _retrying(self) -> Retrying:
        tenacity = self._tenacity
        grows = tenacity.wait_random_exponential(multiplier=0.5, max=_LONGEST_PAUSE)

        def pause(state: RetryCallState) -> float:
            error = None if state.outcome is None else state.outcome.exception()
            asked = error.wait_seconds if isinstance(error, _BusyError) else 0.0
            return max(float(grows(state)), asked)

        retrying: Retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._may_pass),
            stop=tenacity.stop_before_delay(self._patience_seconds),
            wait=pause,
            reraise=True,
        )
        return retrying

    def _may_pass(self, error: BaseException) -> bool:
        """Whether to repeat: a server that never answered is not there."""
        lost = isinstance(error, _LostError) and self._answered
        return lost or isinstance(error, _BusyError)

    def _once(self, method: str, path: str, **more: Any) -> Any:
        with self._failures(path), self._client.stream(method, self.address + path, **more) as got:
            data = _read(got)
            self._require_success(path, got, data)
        return self._json(path, got, data)

    def _streamed(
        self, path: str, body: Mapping[str, Any], on_event: Callable[[Json], None]
    ) -> list[Json]:
        events: list[Json] = []
        with (
            self._failures(path),
            self._client.stream("POST", self.address + path, json=body) as got,
        ):
            if not got.is_success:
                self._require_success(path, got, _read(got))
            for line in _lines(got):
                kind, _, data = line.partition(b":")
                if kind not in (b"data", b"error") or data.strip() == b"[DONE]":
                    continue
                event = self._json(path, got, data)
                if not isinstance(event, dict):
                    raise ServerError(f"{self._at(path)}: expected an object in the stream")
                if kind == b"error" or event.get("error"):
                    raise self._error(path, event)
                events.append(event)
                on_event(event)
        return events

    def _at(self, path: str) -> str:
        return f"{self.address}{path}"

    @contextmanager
    def _failures(self, path: str) -> Iterator[None]:
        httpx, at = self._httpx, self._at(path)
        try:
            yield
        except httpx.ConnectTimeout:
            raise _LostError(f"{at}: no server answers") from None
        except httpx.TimeoutException:
            raise ServerError(
                f"{at}: no answer within {duration(self._timeout_seconds)}; give a longer "
                "`timeout_seconds`"
            ) from None
        except httpx.ConnectError as error:
            if "certificate" in str(error).lower() or "ssl" in str(error).lower():
                raise ServerError(f"{at}: TLS failed: {error}") from None
            raise _LostError(f"{at}: no server there ({error})") from None
        except httpx.TransportError as error:
            raise _LostError(f"{at}: the connection ended early ({error})") from None
        except (httpx.InvalidURL, httpx.DecodingError) as error:
            raise ServerError(f"{at}: {error}") from None

    def _require_success(self, path: str, got: httpx.Response, data: bytes) -> None:
        if got.is_success:
            return
        at, status = self._at(path), got.status_code
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            body = None
        why = self._reason(body) or self._shown(f"{got.reason_phrase}{_kind(got, data)}")
        if got.is_redirect:
            where = self._shown(got.headers.get("location", "elsewhere"))
            raise ServerError(f"{at}: redirects to {where}; give that address", status=status)
        if status in (401, 403):
            why += f"; set {KEY_VARIABLE}, or {LOGIN_VARIABLE} for basic authentication"
        message = f"{at}: HTTP {status}: {why}"
        if status in _BUSY:
            busy = _BusyError(message, status=status)
            wait = got.headers.get("retry-after", "")
            busy.wait_seconds = float(wait) if wait.isdecimal() and len(wait) < 6 else 0.0
            raise busy
        raise ServerError(message, status=status, body=body if isinstance(body, dict) else None)

    def _json(self, path: str, got: httpx.Response, data: bytes) -> Any:
        try:
            found = json.loads(data)
            if b"\\ud" in data.lower():
                # Halves of a pair of surrogates are in no text that can be sent or stored.
                found = json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            kind = self._shown(_kind(got, data)) or " something else"
            raise ServerError(
                f"{self._at(path)}: expected JSON, got{kind}", status=got.status_code
            ) from None
        return found

    def _error(self, path: str, body: Json) -> ServerError:
        """Return the error that came in the place of an answer."""
        why = self._reason(body) or "an error without a reason"
        return ServerError(f"{self._at(path)}: {why}", body=body)

    def _reason(self, body: object) -> str:
        """Return what the JSON of an error says, in one line; "" where it says nothing."""
        return self._shown(reason_of(body))

    def _shown(self, words: str) -> str:
        """Return words of the server as they may be shown: one line, and no credentials, which
        some repeat."""
        for secret in self._secrets:
            words = words.replace(secret, "***")
        return words[:_REASON_CHARACTERS]


def reason_of(body: object) -> str:
    """Return what the JSON of an error says, in one line; "" where it says nothing."""
    for _ in range(3):
        if isinstance(body, dict):
            named = (body.get(key) for key in ("error", "message", "detail", "msg"))
            body = next((found for found in named if found), None)
        elif isinstance(body, list) and body:
            body = body[0]
    return " ".join(body.split()) if isinstance(body, str) else ""


def _secrets(given: Credentials) -> list[str]:
    """Return what opens a server in every form in which it is sent, the longest first."""
    user, password = given.login or ("", "")
    login = b64encode(f"{user}:{password}".encode()).decode() if given.login else ""
    return sorted(filter(None, (given.key, password, login)), key=len, reverse=True)


def _lines(got: httpx.Response) -> Iterator[bytes]:
    """Yield the lines of a stream of events that are not empty. Only CR and LF end one: texts have
    other separators of lines in them. Raises ServerError where there is no end."""
    size, rest = 0, bytearray()
    for piece in got.iter_bytes():
        size += len(piece)
        if size > _MOST_BYTES:
            raise ServerError(f"{got.url}: the answer has no end")
        first, *more = re.split(rb"[\r\n]+", piece)
        rest += first
        for line in more:
            yield bytes(rest)
            rest = bytearray(line)
    yield bytes(rest)


def _kind(got: httpx.Response, data: bytes) -> str:
    """Return what came instead of JSON, " (HTML)" for instance."""
    kind = got.headers.get("content-type", "").partition(";")[0].strip()
    if "html" in kind or data.lstrip()[:1] == b"<":
        return " (an HTML page: is this the address of the server itself?)"
    return f" ({kind[:60]})" if kind and "json" not in kind else ""


def _read(got: httpx.Response) -> bytes:
    """Return the body of an answer. Raises ServerError where it is too long for one."""
    data = bytearray()
    for piece in got.iter_bytes():
        data += piece
        if len(data) > _MOST_BYTES:
            raise ServerError(f"{got.url}: the answer is longer than {_MOST_BYTES >> 20} MiB")
    return bytes(data)
