"""Servers and connections for the driver tests, over real sockets."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import trio

from shim.ttrpc.client import Client, open_client
from shim.ttrpc.framing import FrameDecoder
from shim.ttrpc.messages import Response, decode_response
from shim.ttrpc.server import Server
from shim.ttrpc.service import Method, Service

LIMIT = 20.0  # seconds after which a hanging test is given up


def methods(**handlers: Any) -> list[Method]:
    """Methods whose messages are plain bytes; a tuple adds keyword arguments of Method."""
    table = []
    for name, entry in handlers.items():
        handler, options = entry if isinstance(entry, tuple) else (entry, {})
        table.append(Method(name, handler, bytes, bytes, **options))
    return table


def echo_service(**handlers: Any) -> Service:
    """Service "t" with Echo and the given methods."""
    return Service("t", methods(Echo=lambda request, context: request, **handlers))


def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two connected stream sockets."""
    left, right = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return trio.SocketStream(left), trio.SocketStream(right)


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Callable[[], trio.SocketStream]]:
    """Run connections of a server; each call of the value opens one."""
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:

            def connect() -> trio.SocketStream:
                ours, theirs = socket_pair()
                nursery.start_soon(server.serve_connection, theirs)
                return ours

            yield connect
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def client_of(services: Iterable[Service] | Service, **options: Any) -> AsyncIterator[Client]:
    """A client connected to a fresh server of the services."""
    found = [services] if isinstance(services, Service) else services
    async with (
        serving(Server(found, **options)) as connect,
        open_client(connect()) as client,
    ):
        yield client


class RawPeer:
    """The other end as bytes: sends frames by hand, reads them one by one."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder()
        self._frames: list[tuple[int, int, int, bytes | None]] = []

    async def send(self, data: bytes | str) -> None:
        await self.stream.send_all(bytes.fromhex(data) if isinstance(data, str) else data)

    async def frame(self) -> tuple[int, int, int, bytes] | None:
        """The next frame, None at the end."""
        while not self._frames:
            data = await self.stream.receive_some(65536)
            if not data:
                return None
            self._frames = self._decoder.feed(data)
        stream_id, kind, flags, payload = self._frames.pop(0)
        assert payload is not None
        return stream_id, kind, flags, payload

    async def response(self) -> tuple[int, Response]:
        """The next frame, which must be a Response."""
        frame = await self.frame()
        assert frame is not None
        assert frame[1] == 2
        return frame[0], decode_response(frame[3])
