"""Where a server is, and what opens it: an address without credentials, and the credentials.

An address is stored in plans and shown in reports, so it never has a user name, a password or a
query in it. Keys come from the environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from ggufrope.errors import RequestError

KEY_VARIABLE = "GGUFROPE_API_KEY"
"""The environment variable with the key that a server requires, sent as a bearer token."""
LOGIN_VARIABLE = "GGUFROPE_SERVER_LOGIN"
"""The environment variable with USER:PASSWORD, for a server behind basic authentication."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What opens a server; never shown."""

    key: str | None = field(default=None, repr=False)
    login: tuple[str, str] | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls) -> Credentials:
        """Read the variables. Raises RequestError where one cannot be sent in a header, and where
        both are given: there is one header for both."""
        for name in (KEY_VARIABLE, LOGIN_VARIABLE):
            value = os.environ.get(name, "")
            if not (value.isascii() and (value.isprintable() or not value)):
                raise RequestError(f"{name} has characters that no HTTP header can have")
        user, _, password = os.environ.get(LOGIN_VARIABLE, "").partition(":")
        key = os.environ.get(KEY_VARIABLE) or None
        login = (user, password) if user or password else None
        if key and login:
            raise RequestError(
                f"a request has room for a key or for a login: unset {KEY_VARIABLE}, or give no "
                f"{LOGIN_VARIABLE} and no USER:PASSWORD in the address"
            )
        return cls(key=key, login=login)


def normal_address(text: str) -> str:
    """Return the address of a server as plans keep it: scheme, host, port and path, without a
    trailing `/v1`.

    Raises RequestError where it is none, and where it has credentials, a query or a fragment.
    """
    parts = _split(text)
    if parts.username is not None or parts.password is not None:
        raise RequestError(
            f"`server` {_bare(parts)}: a plan keeps no credentials; put USER:PASSWORD into "
            f"{LOGIN_VARIABLE}, a key into {KEY_VARIABLE}"
        )
    if parts.query or parts.fragment:
        raise RequestError(
            f"`server` {_bare(parts)}: give the address without what follows ? or #; a key goes "
            f"into {KEY_VARIABLE}"
        )
    return _bare(parts)


def split_login(text: str) -> tuple[str, str | None]:
    """Return an address without its credentials, and these as USER:PASSWORD, None without any.

    Raises RequestError where the address is none.
    """
    parts = _split(text)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    if parts.username is None and parts.password is None:
        return text.strip(), None
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return bare.geturl(), login


def is_loopback(address: str) -> bool:
    """Return whether an address is this machine's own by its name."""
    host = _split(address).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text.strip())
        port = parts.port  # read here: it raises where it is none
    except ValueError:
        parts, port = SplitResult("", "", "", "", ""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        shown = "" if "@" in text else f" {text.strip()[:200]!r}"
        raise RequestError(f"`server`{shown}: expected an address such as http://localhost:8080")
    if not text.isprintable() or any(character.isspace() for character in text.strip()):
        raise RequestError("`server` has characters that no address can have")
    return parts


def _bare(parts: SplitResult) -> str:
    host = parts.netloc.rpartition("@")[2]
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{host}{path}"
