"""The QMP client against a scripted server on a real socket."""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from vmm.errors import ApiError, ControlTimeout, VmmGone
from vmm.qemu.qmp import QmpClient

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}


class Server:
    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock
        self._buffer = b""
        self.fds: list[int] = []

    async def send(self, *messages: object) -> None:
        data = b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)
        while data:
            data = data[await self.sock.send(data) :]

    async def command(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            data, ancillary, _, _ = await self.sock.recvmsg(65536, 1024)
            assert data
            for _, _, rights in ancillary:
                self.fds += array.array("i", rights)
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        command: dict[str, Any] = json.loads(line)
        return command


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[QmpClient, Server]]:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    client = QmpClient(trio.SocketStream(ours))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        try:
            yield client, Server(theirs)
        finally:
            theirs.close()
            nursery.cancel_scope.cancel()


async def test_negotiation_waits_for_the_first_reply() -> None:
    async with connected() as (client, server):
        await server.send(GREETING)
        with pytest.raises(ControlTimeout):
            await client.negotiate(0.05)
    async with connected() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.negotiate, 5)
        await server.send(GREETING)
        command = await server.command()
        assert command["execute"] == "qmp_capabilities"
        await server.send({"return": {}, "id": command["id"]})


async def test_replies_find_their_commands_in_any_order() -> None:
    results: dict[str, Any] = {}
    async with connected() as (client, server), trio.open_nursery() as nursery:

        async def run(name: str) -> None:
            results[name] = await client.execute(name)

        for name in ("a", "b", "c"):
            nursery.start_soon(run, name)
        commands = [await server.command() for _ in range(3)]
        for command in reversed(commands):
            await server.send({"return": command["execute"] * 2, "id": command["id"]})
    assert results == {"a": "aa", "b": "bb", "c": "cc"}


async def test_an_event_before_the_reply_is_seen() -> None:
    async with connected() as (client, server), trio.open_nursery() as nursery:
        with client.subscribe() as events:
            nursery.start_soon(client.execute, "device_del")
            command = await server.command()
            gone = {"event": "DEVICE_DELETED", "data": {"device": "d"}}
            await server.send(gone, {"return": {}, "id": command["id"]})
            event = await anext(events)
            assert (event.name, event.data) == ("DEVICE_DELETED", {"device": "d"})


async def test_refusal() -> None:
    async with connected() as (client, server), trio.open_nursery() as nursery:

        async def run() -> None:
            with pytest.raises(ApiError, match="no such thing") as caught:
                await client.execute("device_add", {"id": "x"})
            assert (caught.value.command, caught.value.kind) == ("device_add", "GenericError")

        nursery.start_soon(run)
        command = await server.command()
        error = {"class": "GenericError", "desc": "no such thing"}
        await server.send({"error": error, "id": command["id"]})


async def test_descriptors_travel_with_their_command() -> None:
    read, write = os.pipe()
    async with connected() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.pass_fd, write)
        first = await server.command()
        await server.send({"return": {}, "id": first["id"]})
        nursery.start_soon(client.pass_fd, write)
        second = await server.command()
        await server.send({"return": {}, "id": second["id"]})
        assert first["execute"] == "getfd"
        assert first["arguments"]["fdname"] != second["arguments"]["fdname"]
        os.write(server.fds[0], b"through")
        assert os.read(read, 7) == b"through"
    for fd in (read, write, *server.fds):
        os.close(fd)


async def test_lost_connection_fails_what_is_outstanding() -> None:
    async with connected() as (client, server):
        with client.subscribe() as events, trio.fail_after(5):
            async with trio.open_nursery() as nursery:

                async def run() -> None:
                    with pytest.raises(VmmGone, match="during stop"):
                        await client.execute("stop")

                nursery.start_soon(run)
                await server.command()
                server.sock.close()
            assert [event async for event in events] == []
        with pytest.raises(VmmGone):
            await client.execute("cont")
        assert [event async for event in client.subscribe()] == []


async def test_a_late_reply_harms_nobody() -> None:
    async with connected() as (client, server):
        with pytest.raises(ControlTimeout, match="slow within"):
            await client.execute("slow", timeout=0.05)
        late = await server.command()
        await server.send({"return": "late", "id": late["id"]})
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                assert await client.execute("next") == "in time"

            nursery.start_soon(run)
            command = await server.command()
            await server.send({"return": "in time", "id": command["id"]})
