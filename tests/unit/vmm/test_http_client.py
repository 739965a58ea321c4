"""The VMM API client against a server that says exactly what the test wants."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from vmm.errors import ApiError, ChannelClosed, Conflict, ControlTimeout, NotFound, VmmError
from vmm.http_client import HttpClient, error_text

Serve = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def client_of(path: Path, serve: Serve) -> AsyncIterator[HttpClient]:
    """A client of a server that runs `serve` for each connection."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.bind(str(path))
        raw.listen()
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(raw))
        client = HttpClient(path, vmm="Test 1.0", timeout=5, prefix="/api")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            yield client
            await client.aclose()
            nursery.cancel_scope.cancel()


def answering(*answers: bytes, seen: list[bytes] | None = None) -> Serve:
    async def serve(stream: trio.SocketStream) -> None:
        for answer in answers:
            request = await stream.receive_some(65536)
            if not request:
                return
            if seen is not None:
                seen.append(bytes(request))
            await stream.send_all(answer)
        await stream.receive_some(1)

    return serve


NO_CONTENT = b"HTTP/1.1 204 \r\n\r\n"


def json_answer(status: int, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} \r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def test_requests_share_a_connection(tmp_path: Path) -> None:
    seen: list[bytes] = []
    serve = answering(json_answer(200, b'{"id":"x"}'), NO_CONTENT, seen=seen)
    async with client_of(tmp_path / "s", serve) as client:
        assert await client.request("GET", "/") == {"id": "x"}
        assert await client.request("PUT", "/a", {"b": True}) is None
    assert seen[0].startswith(b"GET /api/ HTTP/1.1\r\n")
    assert seen[1].endswith(b'\r\n\r\n{"b":true}')


async def test_a_closed_idle_connection_is_replaced(tmp_path: Path) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(NO_CONTENT)
        await stream.aclose()

    async with client_of(tmp_path / "s", serve) as client:
        await client.request("PUT", "/a")
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.request("PUT", "/b")


async def test_descriptors_travel_on_a_connection_of_their_own(tmp_path: Path) -> None:
    connections: list[list[int]] = []

    async def serve(stream: trio.SocketStream) -> None:
        fds: list[int] = []
        connections.append(fds)
        while True:
            data, ancillary, _, _ = await stream.socket.recvmsg(65536, 1024)
            for _, _, payload in ancillary:
                fds += memoryview(payload).cast("i").tolist()
            if not data:
                return
            await stream.send_all(NO_CONTENT)

    reader, writer = os.pipe()
    try:
        async with client_of(tmp_path / "s", serve) as client:
            await client.request("PUT", "/a")
            await client.request("PUT", "/b", {"x": 1}, fds=(writer,))
            await client.request("PUT", "/c")
        first, second = connections
        assert first == []
        os.write(second[0], b"same pipe")
        assert os.read(reader, 100) == b"same pipe"
        os.close(second[0])
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    ("status", "kind"), [(400, ApiError), (404, NotFound), (409, Conflict), (429, Conflict)]
)
async def test_refusals(tmp_path: Path, status: int, kind: type[VmmError]) -> None:
    body = b'["outer", "inner"]'
    async with client_of(tmp_path / "s", answering(json_answer(status, body))) as client:
        with pytest.raises(kind, match=r"Test 1\.0 PUT /a.*outer: inner"):
            await client.request("PUT", "/a", {"b": 1})


async def test_no_answer_in_time(tmp_path: Path) -> None:
    connections = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await stream.receive_some(65536)
        if connections > 1:
            await stream.send_all(NO_CONTENT)
        await stream.receive_some(1)

    async with client_of(tmp_path / "s", serve) as client:
        with pytest.raises(ControlTimeout, match=r"PUT /a: no answer within 0\.05 s"):
            await client.request("PUT", "/a", timeout=0.05)
        # The late answer must not be taken for the next request's.
        await client.request("PUT", "/b")
        assert connections == 2


async def test_a_server_that_goes_away(tmp_path: Path) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)

    async with client_of(tmp_path / "s", serve) as client:
        with pytest.raises(ChannelClosed, match="closed the connection"):
            await client.request("PUT", "/a")
    with pytest.raises(ChannelClosed):
        await HttpClient(tmp_path / "none", vmm="x", timeout=1).request("GET", "/")


async def test_an_early_refusal_is_read(tmp_path: Path) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(10)
        await stream.send_all(json_answer(400, b'{"fault_message":"too large"}'))
        await stream.send_eof()
        # Closing with bytes unread resets the connection.

    async with client_of(tmp_path / "s", serve) as client:
        with pytest.raises((ApiError, ChannelClosed)):
            await client.request("PUT", "/a", {"x": "y" * 400_000})


async def test_what_is_no_http_or_no_json(tmp_path: Path) -> None:
    async with client_of(tmp_path / "s", answering(b"SSH-2.0-x\r\n\r\n")) as client:
        with pytest.raises(VmmError, match="not an HTTP answer"):
            await client.request("GET", "/")
    async with client_of(tmp_path / "t", answering(json_answer(200, b"{"))) as client:
        with pytest.raises(VmmError, match="no JSON"):
            await client.request("GET", "/")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"fault_message":"bad drive"}', "bad drive"),
        (b'["Error from API","The VM is not created"]', "Error from API: The VM is not created"),
        (b"plain words", "plain words"),
        (b'{"error": "Invalid request:\n0"}', '{"error": "Invalid request: 0"}'),
        (b"", "no reason given"),
    ],
)
def test_error_bodies(body: bytes, text: str) -> None:
    assert error_text(body) == text
