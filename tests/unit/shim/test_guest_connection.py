"""A connection carried by a stream, whose guest does what it likes."""

from __future__ import annotations

import math
import socket
from typing import cast

import pytest
import trio
import trio.testing

from protos.katapy.extension_pb2 import ConnectionFrame
from shim.guest_connection import WINDOW, Relay
from shim.ttrpc.stream import ClientStream


class GuestEnd:
    """A stream in memory; what the host sends is kept."""

    def __init__(self) -> None:
        self.sent: list[ConnectionFrame] = []
        self._to_host, self._inbox = trio.open_memory_channel[bytes](math.inf)

    def push(self, data: bytes = b"", *, eof: bool = False, credit: int = 0) -> None:
        self.push_raw(ConnectionFrame(data=data, eof=eof, credit=credit).SerializeToString())

    def push_raw(self, data: bytes) -> None:
        self._to_host.send_nowait(data)

    def end(self) -> None:
        self._to_host.close()

    async def receive(self) -> bytes | None:
        try:
            return await self._inbox.receive()
        except trio.EndOfChannel:
            return None

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(ConnectionFrame.FromString(data))


def pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    ours, theirs = (trio.socket.from_stdlib_socket(s) for s in socket.socketpair())
    return trio.SocketStream(ours), trio.SocketStream(theirs)


async def test_bytes_go_both_ways_until_both_have_ended(nursery: trio.Nursery) -> None:
    guest, (host, client) = GuestEnd(), pair()
    relay = Relay(cast(ClientStream, guest), host)
    done = trio.Event()

    async def run() -> None:
        await relay.run()
        done.set()

    nursery.start_soon(run)
    for _ in range(3):
        guest.push(b"abc")
    guest.push(b"", eof=True)
    guest.push(credit=6)
    received = b""
    while data := await client.receive_some():
        received += data
    assert received == b"abcabcabc"
    await client.send_all(b"hello")
    await client.send_eof()
    await done.wait()
    assert b"".join(frame.data for frame in guest.sent) == b"hello"
    assert sum(frame.credit for frame in guest.sent) == 9
    assert guest.sent[-1].eof
    await host.aclose()
    await client.aclose()


@pytest.mark.parametrize("noise", [bytes(4 * WINDOW), b"\xff" * 9])
async def test_a_guest_that_breaks_the_rules_loses_the_connection(noise: bytes) -> None:
    guest, (host, client) = GuestEnd(), pair()
    if len(noise) > WINDOW:
        for start in range(0, len(noise), 1 << 16):
            guest.push(noise[start : start + (1 << 16)])
    else:
        guest.push_raw(noise)
    async with client, host:
        with trio.fail_after(5):
            await Relay(cast(ClientStream, guest), host).run()
