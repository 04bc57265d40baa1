"""Devices of RPC servers: models on them, and servers that do not answer as they should."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

from ggufrope import Context, ContextSettings, Model
from ggufrope.errors import BackendError, InsufficientMemoryError, RequestError
from ggufrope.runtime import library
from ggufrope.runtime.memory import free_memory
from ggufrope.runtime.rpc import CONNECT_SECONDS, LOST_SECONDS, address_problems, require

pytestmark = pytest.mark.llama

if TYPE_CHECKING:
    from tests.conftest import RpcServer

MIB = 1024 * 1024
HELLO = 33
"""Bytes of a client's first message: the command, a length of 8 bytes, and 24 of capabilities."""


@pytest.fixture
def impostor(two_servers: tuple[str, str]) -> Iterator[Callable[[bytes | None], str]]:
    """Start servers that give one answer to the first message, or none where that is None."""
    listening: list[socket.socket] = []
    ended = threading.Event()

    def serve(listener: socket.socket, answer: bytes | None) -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                received = b""
                while len(received) < HELLO and (more := connection.recv(HELLO)):
                    received += more
                if received and answer is None:
                    ended.wait(60)
                elif received:
                    connection.sendall(answer or b"")

    def start(answer: bytes | None) -> str:
        listening.append(socket.create_server(("127.0.0.1", 0)))
        threading.Thread(target=serve, args=(listening[-1], answer), daemon=True).start()
        return f"127.0.0.1:{listening[-1].getsockname()[1]}"

    yield start
    ended.set()
    for listener in listening:
        listener.close()


def hello(*version: int) -> bytes:
    """Return the answer of a server of a version of the protocol, to the first message."""
    return (28).to_bytes(8, "little") + bytes(version) + bytes(25)


@pytest.mark.usefixtures("only_cpu")
def test_a_model_is_on_the_servers_that_it_names_and_no_other(
    nano: Path, two_servers: tuple[str, str]
) -> None:
    one, other = two_servers
    with Model.open(nano, rpc=two_servers) as both:
        names = [device.name for device in library.devices(two_servers) if device.server]
        assert set(both.placement.layer_devices) == set(names)
    for servers, expected in (((one,), names[:1]), ((other,), names[1:]), ((), ["CPU"])):
        with Model.open(nano, rpc=servers) as model, Context(model, ContextSettings(n_ctx=256)):
            assert set(model.placement.layer_devices) == set(expected)
            assert [d.name for d in library.devices(servers) if d.server] == (
                expected if servers else []
            )
            assert set(free_memory(model.servers)) == {"CPU", *expected}


def test_the_servers_are_in_the_order_in_which_they_are_named(
    nano: Path, two_servers: tuple[str, str]
) -> None:
    one, other = two_servers
    placed = []
    for servers in ((one, other), (other, one)):
        with Model.open(nano, rpc=servers, main_gpu=0) as model:
            (device,) = set(model.placement.layer_devices)
            server = {d.name: d.server for d in library.devices(servers)}[device]
            placed.append(server)
    assert placed == [one, other]


@pytest.mark.parametrize("layers", [0, 1, 2, 3, "all"])
def test_a_layer_is_on_the_gpu_only_where_its_weights_are(
    layers: int | Literal["all"], nano: Path, two_servers: tuple[str, str]
) -> None:
    with Model.open(nano, rpc=two_servers, gpu_layers=layers) as model:
        placement = model.placement
        expected = 3 if layers == "all" else layers
        assert placement.layers_on_gpu == expected
        assert placement.layer_devices.count("CPU") == 3 - expected
        for device in set(placement.layer_devices):
            assert placement.weights_on(device) > 0
        held = sum(placement.weights_on(name) for name in set(placement.layer_devices) - {"CPU"})
        assert (held > 0) == (expected > 0)


def test_what_llama_cpp_prints_of_offloaded_layers_is_not_believed(
    nano: Path, two_servers: tuple[str, str]
) -> None:
    """A build with RPC says "offloaded 3/3 layers to GPU" with every layer on the CPU."""
    with library.capture() as log, Model.open(nano, gpu_layers="all") as model:
        assert model.placement.layers_on_gpu == (3 if library.can_offload() else 0)
    assert log.search(r"offloaded 3/3 layers to GPU")


def test_servers_compute_what_the_cpu_does(nano: Path, two_servers: tuple[str, str]) -> None:
    found = []
    for servers, on_device in (((), True), (two_servers, True), (two_servers, False)):
        with (
            Model.open(nano, rpc=servers, gpu_layers="all" if servers else 0) as model,
            Context(model, ContextSettings(n_ctx=256, offload_kqv=on_device)) as context,
        ):
            rows = np.concatenate(list(context.logits(model.tokenize("one two three " * 12))))
            found.append(rows - np.logaddexp.reduce(rows, axis=1, keepdims=True))
    assert len(found[0]) > 30
    for other in found[1:]:
        assert np.abs(np.exp(other) - np.exp(found[0])).max() < 1e-3


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_server_that_has_less_than_it_says_is_out_of_memory(
    start_server: Callable[..., RpcServer], tmp_path: Path
) -> None:
    from tests.gpu.conftest import SHAPE
    from tools.random_model import write

    path = tmp_path / "random.gguf"
    write(path, SHAPE)
    server = start_server(has=4 * MIB)
    with pytest.raises(InsufficientMemoryError, match="not enough memory for the weights: fail"):
        Model.open(path, rpc=(server.address,))


@pytest.mark.usefixtures("only_cpu")
def test_a_server_that_says_it_has_too_little_gets_no_weights(
    start_server: Callable[..., RpcServer], nano: Path
) -> None:
    """nano's output is its embedding, which counts on the device of the output too."""
    server = start_server(says=MIB)
    with pytest.raises(InsufficientMemoryError, match=r"need 1.2 MiB, but 1.0 MiB are free"):
        Model.open(nano, rpc=(server.address,))
    with Model.open(nano, rpc=(server.address,), gpu_layers=1) as model:
        assert model.placement.layers_on_gpu == 1


@pytest.mark.usefixtures("only_cpu")
def test_a_server_that_does_not_say_what_it_has_is_not_one_without_memory(
    start_server: Callable[..., RpcServer], nano: Path
) -> None:
    server = start_server(says=0)
    with Model.open(nano, rpc=(server.address,)) as model:
        assert model.placement.layers_on_gpu == 3
        assert list(free_memory(model.servers)) == ["CPU"]


def test_a_dead_server_is_an_error_for_its_models_alone(
    start_server: Callable[..., RpcServer], nano: Path
) -> None:
    server = start_server()
    Model.open(nano, rpc=(server.address,)).close()
    server.kill()
    with pytest.raises(BackendError, match=rf"{server.address}: no connection \(.+ refused\)"):
        Model.open(nano, rpc=(server.address,))
    with Model.open(nano) as model, Context(model, ContextSettings(n_ctx=256)) as context:
        context.extend([5])
    assert server.address not in {device.server for device in library.devices()}


def test_a_server_with_a_client_is_busy_for_others(
    start_server: Callable[..., RpcServer], nano: Path
) -> None:
    server = start_server()
    with Model.open(nano, rpc=(server.address,)) as model:
        with Model.open(nano, rpc=(server.address,)) as second:  # of this process: one client
            assert second.placement == model.placement
        with pytest.raises(BackendError, match="no answer in 6 s; it serves another client"):
            require((server.address,), answer_seconds=1)
    require((server.address,))


@pytest.mark.parametrize("version", [(6, 0, 0), (8, 0, 0), (7, 200, 0)])
def test_a_server_of_another_version_is_named(
    impostor: Callable[[bytes | None], str], version: tuple[int, ...]
) -> None:
    number = ".".join(map(str, version))
    with pytest.raises(BackendError, match=rf"it speaks version {number} of the protocol, and"):
        require((impostor(hello(*version)),))


@pytest.mark.parametrize(
    "answer",
    [b"", (3).to_bytes(8, "little") + b"\1\0\0", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 99],
    ids=["closes", "first protocol", "web server", "noise"],
)
def test_what_is_no_server_of_this_version_is_said_so(
    impostor: Callable[[bytes | None], str], answer: bytes
) -> None:
    with pytest.raises(BackendError, match="a server of another version, or no RPC server"):
        require((impostor(answer),))


def test_a_server_that_says_nothing_has_a_limited_time(
    impostor: Callable[[bytes | None], str],
) -> None:
    before = time.monotonic()
    address = impostor(None)
    with pytest.raises(BackendError, match=f"RPC server {address}: no answer in 6 s"):
        require((address,), answer_seconds=1)
    assert time.monotonic() - before < CONNECT_SECONDS + 5


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the limits of Linux")
def test_the_connection_of_a_model_ends_where_its_server_is_gone_from_the_network(
    nano: Path, two_servers: tuple[str, str]
) -> None:
    with socket.socket() as other, Model.open(nano, rpc=two_servers):
        assert not other.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        found = {}
        for path in filter(Path.is_socket, Path("/dev/fd").glob("*")):
            with suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as connection:
                if connection.family != socket.AF_INET:
                    continue
                host, port = connection.getpeername()
                kept = connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                limit = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                found[f"{host}:{port}"] = (kept, limit)
    assert {server: found[server] for server in two_servers} == dict.fromkeys(
        two_servers, (1, 1000 * LOST_SECONDS)
    )


def test_a_model_left_open_on_a_dead_server_does_not_hold_up_the_end_of_python(
    start_server: Callable[..., RpcServer], nano: Path
) -> None:
    server = start_server()
    code = (
        "import sys\nfrom ggufrope import Model\n"
        f"model = Model.open({str(nano)!r}, rpc=({server.address!r},))\n"
        "print('open', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        server.kill()
        _, said = process.communicate(timeout=60)
    assert "Remote RPC server crashed" in said


def test_a_name_that_is_none_is_an_error(two_servers: tuple[str, str]) -> None:
    with pytest.raises(BackendError, match=r"no-such-host\.invalid:50052: its name is not known"):
        require((*two_servers, "no-such-host.invalid:50052"))


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":50052", "host:0", "host:65536", "host:5e3", "[::1]:50052", "a b:1"],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    assert len(list(address_problems((address,)))) == 1
    with pytest.raises(RequestError, match="expected HOST:PORT"):
        require((address,))


def test_addresses_are_counted() -> None:
    assert list(address_problems(("127.0.0.1:50052", "gpu-box.local:1"))) == []
    assert list(address_problems(("a:1", "a:1"))) == ["`rpc` has a:1 more than once"]
    assert "at most 15" in next(address_problems([f"a:{port}" for port in range(1, 17)]))


@pytest.mark.parametrize(
    ("buffer", "device"),
    [("CPU", "CPU"), ("CPU_Mapped", "CPU"), ("CUDA_Host", "CPU"), ("Unheard7", "Unheard7")],
)
def test_buffers_are_on_devices(buffer: str, device: str) -> None:
    assert library.device_of(buffer) == device


def test_the_buffers_of_servers_are_on_devices_of_other_numbers(
    two_servers: tuple[str, str], nano: Path
) -> None:
    """Devices are numbered in a process, buffers in a server."""
    Model.open(nano, rpc=two_servers).close()
    names = [library.device_of(f"RPC0[{server}]") for server in two_servers]
    assert names == [d.name for d in library.devices(two_servers) if d.server]
    assert len(set(names)) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "expected HOST:PORT"),
        (["127.0.0.1:50052", "--devices", "CUDA9"], "no device CUDA9; there are CPU"),
        (["192.0.2.1:50052"], "cannot listen on 192.0.2.1:50052"),
        (["192.0.2.1:50052"], "neither encryption nor authentication"),
    ],
)
def test_a_server_says_why_it_does_not_serve(
    arguments: list[str], said: str, two_servers: tuple[str, str]
) -> None:
    command = [sys.executable, "-m", "ggufrope.runtime.rpc_server", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert said in done.stderr
