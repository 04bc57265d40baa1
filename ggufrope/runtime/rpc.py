"""Devices of other processes and machines, lent by llama.cpp's RPC servers.

A server is its address, "host:port". Its devices take layers as a GPU of this machine does.

ggml connects without a time limit, and ends the process where a server does not answer as it
expects. So a server is tried first by a process of its own (`python -m ggufrope.runtime.rpc`), for
a limited time. A server has one client at a time; others wait.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import stat
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufrope.errors import BackendError, MissingDependencyError, RequestError
from ggufrope.runtime import library

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONNECT_SECONDS = 5.0
"""Time that a server has to accept a connection."""
ANSWER_SECONDS = 20.0
"""Time that all servers together have, besides, to say what devices they have."""
LOST_SECONDS = 60
"""Time without any sign of the machine of a server after which a connection to it is lost."""
MOST_SERVERS = 15
"""GGML_SCHED_MAX_BACKENDS, ggml/src/ggml-backend.cpp, without the CPU."""

_ADDRESS = re.compile(r"([\w.-]+):(\d{1,5})")
_users: Counter[str] = Counter()
_registered: set[str] = set()


def address_problems(servers: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with the addresses of servers: llama.cpp takes names and IPv4 ones."""
    if len(servers) > MOST_SERVERS:
        yield f"`rpc` has {len(servers)} servers, at most {MOST_SERVERS} are possible"
    for server, count in Counter(servers).items():
        found = _ADDRESS.fullmatch(server)
        if found is None or not 0 < int(found[2]) < 1 << 16:
            yield f"`rpc` {server!r}: expected HOST:PORT, the host a name or an IPv4 address"
        elif count > 1:
            yield f"`rpc` has {server} more than once"


def register(servers: Sequence[str]) -> None:
    """Make the devices of these servers known to llama.cpp, for the life of this process.

    Raises RequestError for an address that is none, MissingDependencyError where llama.cpp is
    built without RPC, and BackendError where a server does not answer.
    """
    if new := [server for server in servers if server not in _registered]:
        require(new)
        for server in new:
            _add(server)


def acquire(servers: Sequence[str]) -> None:
    """Register servers that a model is about to use, and try those that no model uses.

    Raises what `register` does.
    """
    require([server for server in servers if not _users[server]])
    for server in servers:
        _add(server)
    _users.update(servers)


def watch(servers: Sequence[str]) -> None:
    """Let the connections of ggml to these servers fail where a machine is gone from the network.

    ggml waits for an answer without a limit, for a computation may take long. So the system asks
    whether the other side is there, on the sockets that ggml has opened, where the system lists
    what a process has open.
    """
    peers: set[object] = set()
    for server in servers:
        with suppress(OSError):  # a name that is not known any more
            peers.update(info[4] for info in _addresses(server))
    for number in [int(path.name) for path in Path("/dev/fd").glob("*")]:
        with suppress(OSError):  # not connected, or the list itself, which is closed by now
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as connection:
                if connection.getpeername() in peers:
                    _limit(connection)


def _limit(connection: socket.socket) -> None:
    """Ask each 10 seconds of silence whether the other side is there, and wait a limited time."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    limits = {
        "TCP_KEEPIDLE": 10,
        "TCP_KEEPINTVL": 10,
        "TCP_KEEPCNT": LOST_SECONDS // 10 - 1,
        "TCP_USER_TIMEOUT": 1000 * LOST_SECONDS,
    }
    for name, value in limits.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def release(servers: Sequence[str]) -> None:
    """Say that a model has given up its servers."""
    _users.subtract(servers)


def require(servers: Sequence[str], *, answer_seconds: float = ANSWER_SECONDS) -> None:
    """Raise BackendError where a server does not answer as this llama.cpp expects, in a limited
    time; MissingDependencyError where llama.cpp is built without RPC."""
    if not servers:
        return
    if problems := tuple(address_problems(servers)):
        raise RequestError("; ".join(problems))
    rpc_function("ggml_backend_rpc_add_server")
    limit = CONNECT_SECONDS * len(servers) + answer_seconds
    command = [sys.executable, "-m", __name__, *servers]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired as error:
        reached = (error.stdout or b"").decode().split()
        raise BackendError(
            f"RPC server {reached[-1] if reached else servers[0]}: no answer in {limit:.0f} s; it "
            "serves another client, or is no RPC server"
        ) from None
    if done.returncode:
        reached = done.stdout.decode().split()
        reason = done.stderr.decode("utf-8", "replace").strip().split("\n")[-1]
        raise BackendError(f"RPC server {reached[-1] if reached else servers[0]}: {reason}")


def _addresses(server: str) -> list[Any]:
    """Return what getaddrinfo says of a server; llama.cpp takes IPv4. Raises OSError."""
    host, _, port = server.rpartition(":")
    return socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)


def _add(server: str) -> None:
    """Register one server, once. ggml ends the process where it does not answer."""
    if server in _registered:
        return
    kind = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)
    registry = kind(rpc_function("ggml_backend_rpc_add_server"))(server.encode())
    if not registry:
        raise BackendError(f"RPC server {server}: it has no device")
    library.ggml_function("ggml_backend_register", None, ctypes.c_void_p)(registry)
    _registered.add(server)


def rpc_function(name: str) -> Any:
    """Return the address of a function of ggml's RPC backend, wherever that is built."""
    library.load()
    by_name = library.ggml_function("ggml_backend_reg_by_name", ctypes.c_void_p, ctypes.c_char_p)
    address = library.ggml_function(
        "ggml_backend_reg_get_proc_address", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p
    )
    backend = by_name(b"RPC")
    found = address(backend, name.encode()) if backend else None
    if not found:
        raise MissingDependencyError(
            "this build of llama.cpp has no RPC: install llama-cpp-python again with "
            'CMAKE_ARGS="-DGGML_RPC=on" and pip\'s --no-cache-dir'
        )
    return found


# In a process of its own


def _reach(server: str) -> None:
    """Connect, which ggml would do without a time limit. Raises BackendError."""
    try:
        (*_, address), *_ = _addresses(server)
    except OSError as error:
        raise BackendError(f"its name is not known ({error.strerror})") from error
    with socket.socket() as connection:
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(address)
        except TimeoutError as error:
            raise BackendError(f"no connection in {CONNECT_SECONDS:.0f} s") from error
        except OSError as error:
            raise BackendError(f"no connection ({error.strerror})") from error


def _ended(log: library.Log, reason: str) -> str:
    """Return what it means that ggml ended the process over a server's answer."""
    mismatch = log.search(r"version mismatch: ([\d.]+)")
    if mismatch:
        return (
            f"it speaks version {mismatch[0][1]} of the protocol, and this llama.cpp "
            f"({library.versions().commit}) another; start a server of the same llama.cpp"
        )
    return (
        f"it does not answer as this llama.cpp ({library.versions().commit}) expects: a server of "
        f"another version, or no RPC server ({reason})"
    )


def main() -> int:
    """Connect to the servers that are the arguments, name each on standard output, and ask for its
    devices; return 1 with the reason on standard error where one does not answer."""
    servers = sys.argv[1:]
    with library.capture() as log:
        library.on_abort = lambda reason: os.write(2, _ended(log, reason).encode())
        try:
            for server in servers:
                os.write(1, f"{server}\n".encode())
                _reach(server)
                _add(server)
                library.devices((server,))
        except BackendError as error:
            os.write(2, str(error).encode())
            return 1
    return 0


if __name__ == "__main__":
    os._exit(main())
