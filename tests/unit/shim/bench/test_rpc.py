"""The benchmark's blocking client, against our server's codec on a socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protos.containerd import task_v2_pb2
from protos.containerd.bootstrap_pb2 import BootstrapResult
from shim.bench.rpc import ShimClient
from shim.errors import Internal, Unavailable
from shim.ttrpc.framing import RESPONSE, FrameDecoder, encode_frame
from shim.ttrpc.messages import Request, decode_request, encode_response

Answer = Callable[[Request], bytes]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Answer], str]]:
    """Gives the address of a server of one connection that answers by a function."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = tmp_path / "s"
    listener.bind(str(path))
    listener.listen(1)
    threads: list[threading.Thread] = []

    def start(answer: Answer) -> str:
        def loop() -> None:
            connection, _ = listener.accept()
            with connection:
                decoder = FrameDecoder()
                while data := connection.recv(65536):
                    for stream, _, _, payload in decoder.feed(data):
                        reply = answer(decode_request(payload or b""))
                        connection.sendall(encode_frame(stream, RESPONSE, 0, reply))

        threads.append(threading.Thread(target=loop, daemon=True))
        threads[-1].start()
        return f"unix://{path}"

    yield start
    for thread in threads:
        thread.join(5)
    listener.close()


def as_json(address: str) -> str:
    return f'{{"version": 3, "address": "{address}", "protocol": "ttrpc"}}'


def as_message(address: str) -> str:
    result = BootstrapResult(version=3, address=address, protocol="ttrpc")
    return result.SerializeToString().decode()


@pytest.mark.parametrize("said_by_start", [as_json, as_message])
def test_call_returns_the_payload_of_the_service_version_asked_for(
    serve: Callable[[Answer], str], said_by_start: Callable[[str], str]
) -> None:
    seen = []

    def answer(request: Request) -> bytes:
        seen.append((request.service, request.method))
        return encode_response(0, "", request.payload)

    address = serve(answer)
    with ShimClient(said_by_start(address)) as client:
        said = client.call("State", task_v2_pb2.StateRequest(id="a"))
    assert task_v2_pb2.StateRequest.FromString(said).id == "a"
    assert seen == [("containerd.task.v3.Task", "State")]


def test_an_error_is_raised_with_its_text(serve: Callable[[Answer], str]) -> None:
    address = serve(lambda _: encode_response(5, "no such thing", b""))
    with (
        ShimClient(address) as client,
        pytest.raises(Internal, match="State: no such thing"),
    ):
        client.call("State", task_v2_pb2.StateRequest(id="a"))


def test_rate_counts_answers(serve: Callable[[Answer], str]) -> None:
    calls = []

    def answer(request: Request) -> bytes:
        calls.append(request)
        return encode_response(0, "", b"")

    with ShimClient(serve(answer)) as client:
        rate = client.rate("State", task_v2_pb2.StateRequest(id="a"), 8, 0.05)
    assert len(calls) % 8 == 0
    assert 0 < rate <= len(calls) / 0.05


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"shim at .*: No such file"):
        ShimClient(f"unix://{tmp_path}/none")
