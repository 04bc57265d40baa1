"""Fixtures shared by all folders: real models, their paths, and a copy to edit."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from ggufrope.runtime import library

with suppress(ImportError):  # the GPU tests do not need it
    from hypothesis import settings

    # The time of an example depends on how busy the machine is, so there is no deadline.
    settings.register_profile("ggufrope", deadline=None)
    settings.load_profile("ggufrope")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, as `make test` fetches it; never to be written to."""
    path = Path(
        os.environ.get("GGUFROPE_SMOLLM2", ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    )
    if not path.is_file():
        pytest.skip("SmolLM2 is not here: `make test` fetches it")
    return path


@pytest.fixture(scope="session")
def nano() -> Path:
    """The nano model of fixtures/, trained at 256 tokens; never to be written to."""
    return ROOT / "fixtures" / "nano.gguf"


@dataclass(frozen=True)
class RpcServer:
    """A process that lends its CPU at an address of this machine."""

    address: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        """End it without a word to its client."""
        self.process.kill()
        self.process.wait()


StartServer = Callable[..., RpcServer]
MEMORY_OF_A_SERVER = 8 * 2**30
"""Bytes that an RPC server of the tests says it has."""


@contextmanager
def starting_servers() -> Iterator[StartServer]:
    """Yield a function that starts RPC servers, with the memory that they say they have and that
    they really have; end them afterwards."""
    if "RPC" not in library.backends():
        pytest.skip("this build of llama.cpp has no RPC: it is built without -DGGML_RPC=on")
    with ExitStack() as cleanup:

        def start(says: int = MEMORY_OF_A_SERVER, has: int | None = None) -> RpcServer:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            script = str(ROOT / "tests" / "small_server.py")
            command = [sys.executable, script, address, str(says)]
            process = cleanup.enter_context(
                subprocess.Popen(
                    [*command, *(() if has is None else (str(has),))],
                    stdout=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    text=True,
                )
            )
            cleanup.callback(process.kill)
            _wait_for(address, process)
            return RpcServer(address=address, process=process)

        yield start


def _wait_for(address: str, process: subprocess.Popen[str]) -> None:
    """Return when the server listens."""
    host, _, port = address.partition(":")
    end = time.monotonic() + 60
    while True:
        assert process.poll() is None, "the RPC server has ended"
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=5):
            return
        assert time.monotonic() < end, "the RPC server does not listen"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def two_servers() -> Iterator[tuple[str, str]]:
    """The addresses of two RPC servers, for one model at a time; never to be killed."""
    with starting_servers() as start:
        yield start().address, start().address


@pytest.fixture
def only_cpu() -> None:
    """Skip the test where a device of this machine would take layers."""
    if library.can_offload():
        pytest.skip("a GPU of this machine takes layers")


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start RPC servers of the test's own."""
    with starting_servers() as start:
        yield start


@pytest.fixture
def nano_copy(nano: Path, tmp_path: Path) -> Path:
    """A copy of the nano model to edit."""
    return Path(shutil.copy(nano, tmp_path / "nano.gguf"))
