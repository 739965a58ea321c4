"""A server that no client can hold up or fill."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from shim.errors import Unavailable
from shim.http.client import ask
from shim.http.codec import Answer, Request
from shim.http.server import HttpServer
from vmm.http1 import Response, ResponseDecoder, encode_request

IDLE, ANSWER, SEND = 5.0, 10.0, 7.0


async def handler(request: Request) -> Answer:
    match request.path:
        case "/slow":
            await trio.sleep(1000)
        case "/broken":
            raise RuntimeError("no")
        case "/large":
            return Answer(body=bytes(8 << 20))
    return Answer(body=f"{request.method} {request.path} {len(request.body)}".encode())


@asynccontextmanager
async def serving(connections: int = 2) -> AsyncIterator[list[trio.SocketStream]]:
    """Clients' ends of connections that are served."""
    server = HttpServer(
        handler, connections=connections, body_max=1 << 16, idle_timeout=IDLE,
        answer_timeout=ANSWER, send_timeout=SEND,
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        ends = []
        for _ in range(connections + 1):
            ours, theirs = trio.socket.socketpair()
            nursery.start_soon(server.serve_connection, trio.SocketStream(theirs))
            await trio.testing.wait_all_tasks_blocked()
            ends.append(trio.SocketStream(ours))
        try:
            yield ends
        finally:
            for end in ends:
                await trio.aclose_forcefully(end)
            nursery.cancel_scope.cancel()


async def answer(stream: trio.SocketStream) -> Response:
    decoder = ResponseDecoder()
    while data := await stream.receive_some(1 << 16):
        if (response := decoder.feed(bytes(data))) is not None:
            return response
    return decoder.end()


async def test_requests_on_one_connection(autojump_clock: MockClock) -> None:
    async with serving() as (one, *_):
        for path in ("/a", "/b"):
            await one.send_all(encode_request("PUT", path, b"xy"))
            response = await answer(one)
            assert (response.status, response.body) == (200, f"PUT {path} 2".encode())
        await one.send_all(b"HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert b"Content-Length: 8" in await one.receive_some(1000)
        assert await one.receive_some(1) == b""


async def test_more_connections_than_there_is_room_for(autojump_clock: MockClock) -> None:
    async with serving(connections=2) as ends:
        response = await answer(ends[2])
        assert response.status == 503
        await ends[0].send_all(encode_request("GET", "/"))
        assert (await answer(ends[0])).status == 200


async def test_a_client_that_says_nothing_is_let_go(autojump_clock: MockClock) -> None:
    async with serving() as (one, two, _):
        await two.send_all(b"GET / HT")
        begin = trio.current_time()
        assert await one.receive_some(1) == b""
        assert await two.receive_some(1) == b""
        assert trio.current_time() - begin == pytest.approx(IDLE)


async def test_a_handler_that_hangs_or_fails(autojump_clock: MockClock) -> None:
    async with serving() as (one, two, _):
        await two.send_all(encode_request("GET", "/broken"))
        response = await answer(two)
        assert (response.status, response.body) == (500, b"GET /broken: RuntimeError: no\n")
        await one.send_all(encode_request("GET", "/slow"))
        assert (await answer(one)).status == 504


async def test_a_client_that_takes_nothing_is_let_go(autojump_clock: MockClock) -> None:
    async with serving() as (one, *_):
        await one.send_all(encode_request("GET", "/large"))
        await trio.sleep(2 * SEND)
        received = 0
        with suppress(trio.BrokenResourceError):
            while data := await one.receive_some(1 << 20):
                received += len(data)
        assert 0 < received < 8 << 20


async def test_what_is_no_request_or_too_much(autojump_clock: MockClock) -> None:
    async with serving() as (one, two, _):
        await one.send_all(b"nonsense\r\n\r\n")
        assert (await answer(one)).status == 400
        await two.send_all(b"PUT / HTTP/1.1\r\nContent-Length: 999999\r\n\r\n")
        assert (await answer(two)).status == 413


async def test_a_client_that_waits_is_told_to_go_on(autojump_clock: MockClock) -> None:
    async with serving() as (one, *_):
        head = b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        await one.send_all(head)
        assert await one.receive_some(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await one.send_all(b"ab")
        assert (await answer(one)).body == b"PUT / 2"


async def test_asking_where_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"GET /x at .*none"):
        await ask(str(tmp_path / "none"), "GET", "/x")
