"""Lends the devices of this machine: `python -m ggufrope.runtime.rpc_server 127.0.0.1:50052`.

The server is ggml's own, as in llama.cpp's rpc-server, from the llama.cpp that llama-cpp-python
has: with the same package on both sides, both are of one version. What it says is ggml's.
"""

from __future__ import annotations

import argparse
import ctypes
import signal
import sys
from collections.abc import Sequence

from ggufrope.errors import BackendError, GgufRopeError, RequestError
from ggufrope.runtime import library
from ggufrope.runtime.rpc import address_problems, rpc_function
from ggufrope.runtime.settings import usable_cpus

DEFAULT_ADDRESS = "127.0.0.1:50052"
_LOOPBACK = ("127.", "localhost:")


def serve(address: str, devices: Sequence[str] = (), *, threads: int | None = None) -> None:
    """Serve one client after the other at `address`, "host:port", until the process is ended.

    `devices` are names as `library.devices` has them; by default the GPUs, or the CPU where there
    is none. `threads` are those of the CPU, by default all. The protocol has no encryption and no
    authentication, and a client can make the server read and write any memory of it.

    Raises RequestError for what is no address or device here, MissingDependencyError where
    llama.cpp is built without RPC, BackendError where the address cannot be listened on.
    """
    if problems := tuple(address_problems((address,))):
        raise RequestError("; ".join(problems))
    start = ctypes.CFUNCTYPE(
        None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p
    )(rpc_function("ggml_backend_rpc_start_server"))
    known = {found.name: found for found in library.found_devices()}
    if missing := [name for name in devices if name not in known]:
        raise RequestError(f"no device {', '.join(missing)}; there are {', '.join(known)}")
    lent = [known[name] for name in devices]
    lent = lent or [each for each in known.values() if each.kind in ("gpu", "igpu")]
    lent = lent or [each for each in known.values() if each.kind == "cpu"]
    handles = (ctypes.c_void_p * len(lent))(*(each.handle for each in lent))
    start(address.encode(), None, threads or usable_cpus(), len(lent), handles)
    raise BackendError(f"cannot listen on {address}: no address of this machine, or in use")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve as the arguments say; return the exit code, with one line on standard error."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__)
    parser.add_argument("address", metavar="HOST:PORT", nargs="?", default=DEFAULT_ADDRESS)
    parser.add_argument("--devices", metavar="A,B", help="names of devices; default: the GPUs")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads; default: every CPU")
    given = parser.parse_args(arguments)
    if not given.address.startswith(_LOOPBACK):
        sys.stderr.write(
            f"{given.address} is reached from other machines, and the protocol has neither "
            "encryption nor authentication: use it on a trusted network only\n"
        )
    # Nothing in Python runs until ggml returns, which it does only where it cannot serve.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        devices = given.devices.split(",") if given.devices else ()
        serve(given.address, devices, threads=given.threads)
    except GgufRopeError as error:
        sys.stderr.write(f"{error}\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
